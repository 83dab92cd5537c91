#define ACORN_LANES 8
#define ACORN_NAMESPACE avx2
#define ACORN_NAME "avx2"
#include "cpu_lanes.h"
#include "peak.h"
