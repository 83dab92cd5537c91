#define ACORN_LANES 4
#define ACORN_NAMESPACE portable
#define ACORN_NAME "portable"
#include "cpu_lanes.h"
#include "peak.h"
