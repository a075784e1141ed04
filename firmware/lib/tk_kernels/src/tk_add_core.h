/* What tk_add, tk_add_broadcast and tk_sub do with one pair of elements. */
#ifndef TK_ADD_CORE_H
#define TK_ADD_CORE_H

#include "tk_kernels.h"
#include "tk_requantize.h"

static inline int32_t tk_add_first(const tk_add_t *p, int32_t a)
{
    return tk_requantize((a - p->a_zero) * (1 << TK_ADD_LEFT_SHIFT), p->a_multiplier, p->a_shift);
}

static inline int32_t tk_add_second(const tk_add_t *p, int32_t b)
{
    return tk_requantize((b - p->b_zero) * (1 << TK_ADD_LEFT_SHIFT), p->b_multiplier, p->b_shift);
}

static inline int8_t tk_add_output(const tk_add_t *p, int32_t sum)
{
    return tk_clamp(tk_requantize(sum, p->out_multiplier, p->out_shift) + p->out_zero, p->out_min, p->out_max);
}

#endif
