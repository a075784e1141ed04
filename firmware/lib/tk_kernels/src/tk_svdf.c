#include <string.h>

#include "tk_kernels.h"
#include "tk_requantize.h"

static int32_t limited(int32_t x, int32_t low, int32_t high)
{
    if (x < low) {
        return low;
    }
    return x > high ? high : x;
}

/* The state is declared as bytes of the arena. */
static int32_t load(const int8_t *state, int32_t index)
{
    int16_t value;
    memcpy(&value, state + 2 * index, sizeof value);
    return value;
}

static void append(const tk_svdf_t *restrict p, const int8_t *restrict x, int8_t *restrict state)
{
    const int32_t row_bytes = 2 * p->memory;
    for (int32_t filter = 0; filter < p->filters; filter++, state += row_bytes) {
        const int8_t *weights = p->feature_weights + filter * p->in_c;
        int32_t sum = p->feature_bias[filter];
        for (int32_t i = 0; i < p->in_c; i++) {
            sum += weights[i] * x[i];
        }
        const int32_t scaled = tk_requantize(sum, p->feature_multiplier, p->feature_shift);
        const int16_t newest = (int16_t)limited(scaled, INT16_MIN, INT16_MAX);
        memmove(state, state + 2, (size_t)(row_bytes - 2));
        memcpy(state + row_bytes - 2, &newest, sizeof newest);
    }
}

void tk_svdf(const tk_svdf_t *restrict p, const int8_t *restrict x, int8_t *restrict state, int8_t *restrict y)
{
    const int32_t units = p->filters / p->rank;
    const int32_t per_unit = p->rank * p->memory;
    append(p, x, state);
    for (int32_t unit = 0; unit < units; unit++) {
        const int16_t *weights = p->time_weights + unit * per_unit;
        /* Full 16-bit weights could sum beyond 32 bits, which wraps: unsigned, so that C allows it. */
        uint32_t sum = (uint32_t)p->bias[unit];
        for (int32_t i = 0; i < per_unit; i++) {
            sum += (uint32_t)(weights[i] * load(state, unit * per_unit + i));
        }
        y[unit] = tk_clamp(tk_requantize((int32_t)sum, p->out_multiplier, p->out_shift) + p->out_zero, p->out_min, p->out_max);
    }
}
