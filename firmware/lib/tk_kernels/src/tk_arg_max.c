#include <string.h>

#include "tk_kernels.h"

void tk_arg_max(const tk_arg_max_t *p, const int8_t *x, int8_t *y)
{
    for (int32_t outer = 0; outer < p->outer; outer++, x += p->count * p->inner) {
        for (int32_t inner = 0; inner < p->inner; inner++, y += sizeof(int32_t)) {
            int32_t best = 0;
            for (int32_t i = 1; i < p->count; i++) {
                best = x[i * p->inner + inner] > x[best * p->inner + inner] ? i : best;
            }
            memcpy(y, &best, sizeof best);
        }
    }
}
