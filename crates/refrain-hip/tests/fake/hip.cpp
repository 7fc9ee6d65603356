// The fake HIP library, all of it in one.
#include "fake.h"
#include "blocks.h"
#include "device.h"
#include "streams.h"
#include "modules.h"
#include "hiprtc.h"
