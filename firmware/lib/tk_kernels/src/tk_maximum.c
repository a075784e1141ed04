#include "tk_broadcast.h"
#include "tk_kernels.h"

void tk_maximum(const tk_broadcast_t *p, const int8_t *a, const int8_t *b, int8_t *y)
{
    TK_FOR_EACH_PAIR(p, a, b, y, *first > *second ? *first : *second)
}

void tk_minimum(const tk_broadcast_t *p, const int8_t *a, const int8_t *b, int8_t *y)
{
    TK_FOR_EACH_PAIR(p, a, b, y, *first < *second ? *first : *second)
}
