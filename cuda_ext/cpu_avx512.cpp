#define ACORN_LANES 16
#define ACORN_NAMESPACE avx512
#define ACORN_NAME "avx512"
#include "cpu_lanes.h"
#include "peak.h"
