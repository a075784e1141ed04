/* From accumulator to output of the convolutions. */
#ifndef TK_CONV_OUTPUT_H
#define TK_CONV_OUTPUT_H

#include "tk_kernels.h"
#include "tk_requantize.h"

static inline int8_t tk_conv_output(const tk_conv_2d_t *p, int32_t acc, int32_t channel)
{
    return tk_clamp(tk_requantize(acc, p->multiplier[channel], p->shift[channel]) + p->out_zero, p->out_min, p->out_max);
}

#endif
