/* int8 kernels for cores with the DSP extension (Cortex-M4, Cortex-M7), equal to the portable ones of tk_kernels.h in every
 * output bit; the conventions of that header hold here, too.
 *
 * Constants come packed by the code generator (tinykd/kernels/armv7em/), one module for each part below, which also proves
 * the conditions under which a kernel equals the portable one. `scratch` is aligned to 4 bytes; its size is computed there.
 * Inner loops are inline assembly; on every other core, and on the host, the same functions are C.
 */
#ifndef TK_ARMV7EM_H
#define TK_ARMV7EM_H

#include <stdint.h>

#include "tk_armv7em_convolution.h"
#include "tk_armv7em_dense.h"
#include "tk_armv7em_depthwise.h"
#include "tk_armv7em_elementwise.h"
#include "tk_armv7em_pooling.h"
#include "tk_armv7em_rows.h"

#endif
