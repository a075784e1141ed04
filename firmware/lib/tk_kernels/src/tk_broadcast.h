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

/* For each pair of elements of the operands, in the output's order: *y++ = value, an expression of the pointers `first` and
 * `second` to the pair. */
#define TK_FOR_EACH_PAIR(shape, a, b, y, value)                                                   \
    for (int32_t row = 0; row < tk_broadcast_rows(shape); row++) {                                \
        const int8_t *first = (a) + tk_broadcast_start(shape, (shape)->a_step, row);              \
        const int8_t *second = (b) + tk_broadcast_start(shape, (shape)->b_step, row);             \
        for (int32_t i = 0; i < (shape)->size[TK_BROADCAST_LAST]; i++) {                          \
            *(y)++ = (value);                                                                     \
            first += (shape)->a_step[TK_BROADCAST_LAST];                                          \
            second += (shape)->b_step[TK_BROADCAST_LAST];                                         \
        }                                                                                         \
    }

#endif
