"""What is written down: one line for each event, to standard error.

For people (`console`) or for programs (`json`, one object a line), chosen by the setting `log_format`. What
libraries write through `logging` takes the same form. Lines of a request have its `request_id`, which the
client is told as `X-Request-ID`; those of a job have `scene` and `run`.
"""

from __future__ import annotations

import logging
import sys

import structlog

from acorn_svc.settings import Settings

SHARED: list[structlog.typing.Processor] = [
    structlog.contextvars.merge_contextvars,
    structlog.stdlib.add_log_level,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
]
QUEUE = "dbos"
"""This library brings a handler of its own, unless it finds one, and tells people of its migrations."""


def configure(settings: Settings) -> None:
    """Let everything that this process writes down take the form of `settings`."""
    level = logging.getLevelNamesMapping()[settings.log_level.upper()]
    structlog.configure(
        processors=[*SHARED, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.make_filtering_bound_logger(level),
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_formatter(settings))
    for name, least in {None: level, QUEUE: logging.WARNING}.items():
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.setLevel(max(level, least))
    logging.getLogger(QUEUE).propagate = False


def _formatter(settings: Settings) -> logging.Formatter:
    last: list[structlog.typing.Processor]
    if settings.log_format == "json":
        plain = structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
        last = [structlog.processors.ExceptionRenderer(plain), structlog.processors.JSONRenderer()]
    else:
        colours, plain_text = sys.stderr.isatty(), structlog.dev.plain_traceback
        last = [structlog.dev.ConsoleRenderer(colors=colours, exception_formatter=plain_text)]
    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[*SHARED, structlog.stdlib.add_logger_name],
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last],
    )
