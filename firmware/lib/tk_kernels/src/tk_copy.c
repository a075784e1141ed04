#include <string.h>

#include "tk_kernels.h"

static void copy_row(const tk_copy_t *p, const int8_t *x, int8_t *y)
{
    const int32_t in_step = p->in_step[TK_COPY_RANK - 1];
    const int32_t out_step = p->out_step[TK_COPY_RANK - 1];
    for (int32_t i = p->size[TK_COPY_RANK - 1]; i > 0; i--, x += in_step, y += out_step) {
        if (p->run == 1) {
            *y = *x;
        } else {
            memcpy(y, x, (size_t)p->run);
        }
    }
}

void tk_copy(const tk_copy_t *p, const int8_t *x, int8_t *y)
{
    for (int32_t i = 0; i < p->size[0]; i++) {
        for (int32_t j = 0; j < p->size[1]; j++) {
            for (int32_t k = 0; k < p->size[2]; k++) {
                copy_row(p, x + i * p->in_step[0] + j * p->in_step[1] + k * p->in_step[2],
                         y + i * p->out_step[0] + j * p->out_step[1] + k * p->out_step[2]);
            }
        }
    }
}
