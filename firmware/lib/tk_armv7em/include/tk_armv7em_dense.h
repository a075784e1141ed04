/* Fully connected layers over one row.
 *
 * Four channels run at once; the last four are filled up with weights of 0. `depth` is in_c rounded up to a multiple of 4.
 * Weights are read once, in the order of the stream: for each four channels a, b, c, d
 *
 * Widened: four doubled biases; depth / 4 times the words a, b, c, d of (4i, 4i + 2), then those of (4i + 1, 4i + 3), of
 *     doubled int16 weights.
 *
 * Packed: two channels share a word, a's weight times 1 and b's times 256 in each half. The sum over such words holds both:
 *     256 * B + A. SXTB16 leaves a's weights; their sum A is all that is needed to tell both apart. First the four starts of
 *     256 * B + A, A, 256 * D + C, C; depth / 4 times the words ab, cd of (4i, 4i + 2), then those of (4i + 1, 4i + 3).
 *     B and D must stay within 24 bits.
 *
 * Then, where `has_shared_factors` is 0, multiplier, addend and shift of each of the four channels.
 */
#ifndef TK_ARMV7EM_DENSE_H
#define TK_ARMV7EM_DENSE_H

#include <stdint.h>

typedef struct {
    const int32_t *stream;
    uint16_t in_c, out_c;
    uint8_t has_shared_factors;
    int8_t out_min, out_max;            /* clamp */
    int32_t factors[3];                 /* multiplier, addend and shift of all channels, where they are shared */
} tk_fully_connected_dsp_t;

/* x (in_c), y (out_c), scratch: 2 * depth bytes. y must not overlap x. */
void tk_fully_connected_widened(const tk_fully_connected_dsp_t *params, const int8_t *x, int8_t *y, int8_t *scratch);
void tk_fully_connected_packed(const tk_fully_connected_dsp_t *params, const int8_t *x, int8_t *y, int8_t *scratch);

#endif
