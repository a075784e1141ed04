/* Two operands that broadcast, taken apart into rows along which each advances by one step. */
#ifndef TK_BROADCAST_H
#define TK_BROADCAST_H

#include "tk_kernels.h"

#define TK_BROADCAST_LAST (TK_BROADCAST_RANK - 1)

static inline int32_t tk_broadcast_rows(const tk_broadcast_t *shape)
{
    return shape->size[0] * shape->size[1] * shape->size[2];
}

/* Where row `row` begins in an operand with these steps. */
static inline int32_t tk_broadcast_start(const tk_broadcast_t *shape, const int32_t *step, int32_t row)
{
    const int32_t last = row % shape->size[2];
    const int32_t plane = row / shape->size[2];
    return plane / shape->size[1] * step[0] + plane % shape->size[1] * step[1] + last * step[2];
}

#endif
