#include "tk_armv7em_elementwise.h"

#include "tk_bytes.h"
#include "tk_dsp.h"

typedef struct {
    int32_t a_zeros, b_zeros;   /* pairs of int16 */
    int32_t multiplier, addend, shift;
} tk_product_t;

static inline int32_t output(const tk_product_t *p, int32_t acc)
{
    return tk_ssat8((tk_smmlar(2 * acc, p->multiplier, p->addend) + (acc >> 31)) >> p->shift);
}

/* Products of four elements of each operand. */
static inline int32_t mul4(const tk_product_t *p, int32_t a, int32_t b)
{
    const int32_t a_even = tk_ssub16(tk_sxtb16(a), p->a_zeros), a_odd = tk_ssub16(tk_sxtb16_odd(a), p->a_zeros);
    const int32_t b_even = tk_ssub16(tk_sxtb16(b), p->b_zeros), b_odd = tk_ssub16(tk_sxtb16_odd(b), p->b_zeros);
    return tk_bytes(output(p, tk_low(a_even) * tk_low(b_even)), output(p, tk_low(a_odd) * tk_low(b_odd)),
                    output(p, tk_high(a_even) * tk_high(b_even)), output(p, tk_high(a_odd) * tk_high(b_odd)));
}

static int8_t *row(const tk_product_t *p, int32_t count, const int8_t *a, const int8_t *b, int8_t *y)
{
    for (int8_t *end = y + (count & ~3); y != end; a += 4, b += 4, y += 4) {
        tk_store4(y, mul4(p, tk_load4(a), tk_load4(b)));
    }
    for (int8_t *end = y + (count & 3); y != end; y++) {
        *y = (int8_t)output(p, (*a++ - tk_low(p->a_zeros)) * (*b++ - tk_low(p->b_zeros)));
    }
    return y;
}

void tk_mul_dsp(const tk_mul_dsp_t *params, const int8_t *a, const int8_t *b, int8_t *y)
{
    const tk_product_t p = {tk_pair(params->a_zero, params->a_zero), tk_pair(params->b_zero, params->b_zero),
                            params->multiplier, params->addend, params->shift};
    const int32_t *const size = params->shape.size, *const a_step = params->shape.a_step, *const b_step = params->shape.b_step;
    int8_t *const begin = y;
    for (int32_t i = 0; i < size[0]; i++) {
        for (int32_t j = 0; j < size[1]; j++) {
            for (int32_t k = 0; k < size[2]; k++) {
                y = row(&p, size[3], a + i * a_step[0] + j * a_step[1] + k * a_step[2],
                        b + i * b_step[0] + j * b_step[1] + k * b_step[2], y);
            }
        }
    }
    if (params->out_min > INT8_MIN || params->out_max < INT8_MAX) {
        tk_limit(begin, (int32_t)(y - begin), params->out_min, params->out_max);
    }
}
