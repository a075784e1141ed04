/* Sums to outputs, in C: for single columns, and for cores without the DSP extension. */
#ifndef TK_ROWS_H
#define TK_ROWS_H

#include "tk_armv7em_rows.h"
#include "tk_dsp.h"

/* The output of one channel, from its sum and its constants in the stream, before the clamp. */
static inline int8_t tk_rows_output(const tk_rows_t *rows, int32_t sum, const int32_t *constants)
{
    if (rows->form == TK_ROWS_SATURATING) {
        return (int8_t)tk_ssat8(tk_smmla(sum, constants[0], constants[1]) >> TK_ROWS_SHIFT);
    }
    const int32_t t = tk_smmlar(sum, constants[0], constants[1]);
    return (int8_t)tk_ssat8((rows->form == TK_ROWS_TWO_SIDED ? t + (sum >> 31) : t) >> (constants[2] & 31));
}

/* The clamp of `count` outputs, where it is not int8's. */
static inline void tk_rows_clamp(const tk_rows_t *rows, int8_t *y, int32_t count)
{
    if (rows->out_min == -128 && rows->out_max == 127) {
        return;
    }
    for (const int8_t *end = y + count; y != end; y++) {
        const int8_t raised = *y < rows->out_min ? rows->out_min : *y;
        *y = raised > rows->out_max ? rows->out_max : raised;
    }
}

#endif
