/* Words of four int8. */
#ifndef TK_BYTES_H
#define TK_BYTES_H

#include <stdint.h>

#include "tk_dsp.h"

/* Byte `index` of a word. */
static inline int32_t tk_byte(int32_t word, int32_t index)
{
    return (int8_t)(uint8_t)((uint32_t)word >> (8 * index) & 0xFFU);
}

/* The low bytes of four numbers. */
static inline int32_t tk_bytes(int32_t first, int32_t second, int32_t third, int32_t fourth)
{
    const uint32_t low = ((uint32_t)first & 0xFFU) | ((uint32_t)second & 0xFFU) << 8;
    const uint32_t high = ((uint32_t)third & 0xFFU) | ((uint32_t)fourth & 0xFFU) << 8;
    return (int32_t)(low | high << 16);
}

/* The larger one of each pair of bytes. */
static inline int32_t tk_max4(int32_t a, int32_t b)
{
#if TK_HAS_DSP
    int32_t larger, difference;
    __asm__("ssub8 %1, %2, %3\n\tsel %0, %2, %3" : "=r"(larger), "=&r"(difference) : "r"(a), "r"(b));
    return larger;
#else
    int32_t larger[4];
    for (int32_t i = 0; i < 4; i++) {
        larger[i] = tk_byte(a, i) > tk_byte(b, i) ? tk_byte(a, i) : tk_byte(b, i);
    }
    return tk_bytes(larger[0], larger[1], larger[2], larger[3]);
#endif
}

/* The smaller one of each pair of bytes. */
static inline int32_t tk_min4(int32_t a, int32_t b)
{
#if TK_HAS_DSP
    int32_t smaller, difference;
    __asm__("ssub8 %1, %2, %3\n\tsel %0, %3, %2" : "=r"(smaller), "=&r"(difference) : "r"(a), "r"(b));
    return smaller;
#else
    return ~tk_max4(~a, ~b);
#endif
}

/* y (count), limited in place to low .. high. */
static inline void tk_limit(int8_t *y, int32_t count, int32_t low, int32_t high)
{
    const int32_t lowest = tk_bytes(low, low, low, low), highest = tk_bytes(high, high, high, high);
    int8_t *end = y + (count & ~3);
    for (; y != end; y += 4) {
        tk_store4(y, tk_min4(tk_max4(tk_load4(y), lowest), highest));
    }
    for (end += count & 3; y != end; y++) {
        *y = (int8_t)(*y < low ? low : *y > high ? high : *y);
    }
}

#endif
