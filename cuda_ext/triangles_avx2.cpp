#define ACORN_NAMESPACE avx2
#define ACORN_NAME "avx2"
#include "triangles_lanes.h"
