// The inputs that the convolution of Gated DeltaNet keeps of each sequence: [slot, TAPS, channels], where the input at
// position p is entry p % TAPS. One more than the TAPS - 1 that a token needs, so that its own input takes the place of
// one that nobody reads any more: blocks that read the window of a sequence and the one that adds to it need not wait for
// each other.
#pragma once
#include "step.h"

#define KEPT (TAPS - 1)
#define WINDOW (TAPS > 1 ? TAPS - 1 : 1)

// Which entry has input `j` of the TAPS - 1 before `position`, the oldest first, and whether there is such an input.
KX_DEV u32 window_entry(u32 position, u32 j) { return (position + 1 + j) % TAPS; }
KX_DEV bool in_window(u32 position, u32 j) { return position + j >= KEPT; }
