#include <string.h>

#include "tk_kernels.h"

static int8_t *fill(int8_t *y, int32_t value, int32_t count)
{
    memset(y, value, (size_t)count);
    return y + count;
}

void tk_pad(const tk_pad_t *restrict p, const int8_t *restrict x, int8_t *restrict y)
{
    const int32_t left = p->pad_left * p->channels;
    const int32_t right = p->pad_right * p->channels;
    const int32_t line = p->in_w * p->channels;
    y = fill(y, p->value, p->pad_top * (left + line + right));
    for (int32_t row = 0; row < p->in_h; row++) {
        y = fill(y, p->value, left);
        memcpy(y, x, (size_t)line);
        x += line;
        y = fill(y + line, p->value, right);
    }
    fill(y, p->value, p->pad_bottom * (left + line + right));
}
