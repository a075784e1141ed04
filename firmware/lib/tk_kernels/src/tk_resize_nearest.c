#include <string.h>

#include "tk_kernels.h"

void tk_resize_nearest(const tk_resize_nearest_t *restrict p, const int8_t *restrict x, int8_t *restrict y)
{
    for (int32_t row = 0; row < p->out_h; row++) {
        const int8_t *line = x + p->rows[row] * p->in_w * p->channels;
        for (int32_t column = 0; column < p->out_w; column++, y += p->channels) {
            memcpy(y, line + p->columns[column] * p->channels, p->channels);
        }
    }
}
