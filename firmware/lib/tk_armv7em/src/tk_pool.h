/* Four channels of a block of positions: their sums and maxima. */
#ifndef TK_POOL_H
#define TK_POOL_H

#include <stdint.h>

#include "tk_bytes.h"
#include "tk_dsp.h"

/* Positions of a map, `step` bytes from one to the next in a row; after a row, the next one begins `skip` bytes further on. */
typedef struct {
    int32_t rows, columns, step, skip;
} tk_block_t;

/* Sums of channels 0 and 2, 1 and 3, as pairs of int16. */
typedef struct {
    int32_t even, odd;
} tk_sums_t;

#if TK_HAS_DSP

/* Sums of four channels in one row of at least one position, four positions a turn. */
static inline tk_sums_t tk_row_sums(int32_t columns, int32_t step, const int8_t *x)
{
    tk_sums_t sums = {0, 0};
    int32_t word, next;
    __asm__ volatile("subs    %[columns], %[columns], #4\n\t"
                     "blt     2f\n"
                     "1:\n\t"
                     "ldr     %[word], [%[x]]\n\t"
                     "ldr     %[next], [%[x], %[step]]\n\t"
                     "sxtab16 %[even], %[even], %[word]\n\t"
                     "sxtab16 %[odd], %[odd], %[word], ror #8\n\t"
                     "ldr     %[word], [%[x], %[step], lsl #1]\n\t"
                     "sxtab16 %[even], %[even], %[next]\n\t"
                     "sxtab16 %[odd], %[odd], %[next], ror #8\n\t"
                     "ldr     %[next], [%[x], %[three]]\n\t"
                     "add     %[x], %[x], %[step], lsl #2\n\t"
                     "sxtab16 %[even], %[even], %[word]\n\t"
                     "sxtab16 %[odd], %[odd], %[word], ror #8\n\t"
                     "subs    %[columns], %[columns], #4\n\t"
                     "sxtab16 %[even], %[even], %[next]\n\t"
                     "sxtab16 %[odd], %[odd], %[next], ror #8\n\t"
                     "bge     1b\n"
                     "2:\n\t"
                     "adds    %[columns], %[columns], #4\n\t"
                     "beq     4f\n"
                     "3:\n\t"
                     "ldr     %[word], [%[x]]\n\t"
                     "add     %[x], %[x], %[step]\n\t"
                     "subs    %[columns], %[columns], #1\n\t"
                     "sxtab16 %[even], %[even], %[word]\n\t"
                     "sxtab16 %[odd], %[odd], %[word], ror #8\n\t"
                     "bne     3b\n"
                     "4:"
                     : [even] "+r"(sums.even), [odd] "+r"(sums.odd), [x] "+r"(x), [columns] "+r"(columns), [word] "=&r"(word),
                       [next] "=&r"(next)
                     : [step] "r"(step), [three] "r"(3 * step)
                     : "cc", "memory");
    return sums;
}

/* Sums of four channels; x: those of the first position. */
static inline tk_sums_t tk_block_sums(const tk_block_t *block, const int8_t *x)
{
    if (block->rows == 1) {
        return tk_row_sums(block->columns, block->step, x);
    }
    tk_sums_t sums = {0, 0};
    int32_t rows = block->rows, left, word;
    __asm__ volatile("1:\n\t"
                     "mov     %[left], %[columns]\n"
                     "2:\n\t"
                     "ldr     %[word], [%[x]]\n\t"
                     "add     %[x], %[x], %[step]\n\t"
                     "subs    %[left], %[left], #1\n\t"
                     "sxtab16 %[even], %[even], %[word]\n\t"
                     "sxtab16 %[odd], %[odd], %[word], ror #8\n\t"
                     "bne     2b\n\t"
                     "add     %[x], %[x], %[skip]\n\t"
                     "subs    %[rows], %[rows], #1\n\t"
                     "bne     1b"
                     : [even] "+r"(sums.even), [odd] "+r"(sums.odd), [x] "+r"(x), [rows] "+r"(rows), [left] "=&r"(left),
                       [word] "=&r"(word)
                     : [columns] "r"(block->columns), [step] "r"(block->step), [skip] "r"(block->skip)
                     : "cc", "memory");
    return sums;
}

/* Maxima of four channels, as bytes. */
static inline int32_t tk_block_maxima(const tk_block_t *block, const int8_t *x)
{
    int32_t largest = tk_load4(x), rows = block->rows, left, word, difference;
    __asm__ volatile("1:\n\t"
                     "mov     %[left], %[columns]\n"
                     "2:\n\t"
                     "ldr     %[word], [%[x]]\n\t"
                     "add     %[x], %[x], %[step]\n\t"
                     "subs    %[left], %[left], #1\n\t"
                     "ssub8   %[difference], %[largest], %[word]\n\t"
                     "sel     %[largest], %[largest], %[word]\n\t"
                     "bne     2b\n\t"
                     "add     %[x], %[x], %[skip]\n\t"
                     "subs    %[rows], %[rows], #1\n\t"
                     "bne     1b"
                     : [largest] "+r"(largest), [x] "+r"(x), [rows] "+r"(rows), [left] "=&r"(left), [word] "=&r"(word),
                       [difference] "=&r"(difference)
                     : [columns] "r"(block->columns), [step] "r"(block->step), [skip] "r"(block->skip)
                     : "cc", "memory");
    return largest;
}

#else

static inline tk_sums_t tk_block_sums(const tk_block_t *block, const int8_t *x)
{
    int32_t sums[4] = {0, 0, 0, 0};
    for (int32_t row = 0; row < block->rows; row++, x += block->skip) {
        for (int32_t column = 0; column < block->columns; column++, x += block->step) {
            const int32_t word = tk_load4(x);
            for (int32_t i = 0; i < 4; i++) {
                sums[i] += tk_byte(word, i);
            }
        }
    }
    return (tk_sums_t){tk_pair(sums[0], sums[2]), tk_pair(sums[1], sums[3])};
}

static inline int32_t tk_block_maxima(const tk_block_t *block, const int8_t *x)
{
    int32_t largest = tk_load4(x);
    for (int32_t row = 0; row < block->rows; row++, x += block->skip) {
        for (int32_t column = 0; column < block->columns; column++, x += block->step) {
            largest = tk_max4(largest, tk_load4(x));
        }
    }
    return largest;
}

#endif

/* The next four channels after those from `channel` on; the last four overlap with others where channels are no multiple. */
static inline int32_t tk_next4(int32_t channel, int32_t channels)
{
    return channel + 4 < channels && channel + 8 > channels ? channels - 4 : channel + 4;
}

#endif
