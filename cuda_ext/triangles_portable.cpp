#define ACORN_NAMESPACE portable
#define ACORN_NAME "portable"
#include "triangles_lanes.h"
