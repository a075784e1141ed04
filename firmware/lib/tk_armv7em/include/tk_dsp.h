/* Instructions of the DSP extension (ARMv7E-M) as functions, and the same in C for every other core and for the host.
 *
 * A word of two int16 is written (low, high).
 */
#ifndef TK_DSP_H
#define TK_DSP_H

#include <stdint.h>

#if defined(__ARM_FEATURE_DSP) && __ARM_FEATURE_DSP
#define TK_HAS_DSP 1
#else
#define TK_HAS_DSP 0
#endif

/* Four bytes at any address. */
static inline int32_t tk_load4(const void *from)
{
    int32_t word;
    __builtin_memcpy(&word, from, 4);
    return word;
}

static inline void tk_store4(void *to, int32_t word)
{
    __builtin_memcpy(to, &word, 4);
}

static inline int32_t tk_low(int32_t pair)
{
    return (int16_t)(uint16_t)((uint32_t)pair & 0xFFFFU);
}

static inline int32_t tk_high(int32_t pair)
{
    return pair >> 16;
}

static inline int32_t tk_pair(int32_t low, int32_t high)
{
    return (int32_t)(((uint32_t)low & 0xFFFFU) | ((uint32_t)high << 16));
}

/* Bytes 0 and 2 of a word, widened. */
static inline int32_t tk_sxtb16(int32_t bytes)
{
#if TK_HAS_DSP
    int32_t pair;
    __asm__("sxtb16 %0, %1" : "=r"(pair) : "r"(bytes));
    return pair;
#else
    const uint32_t word = (uint32_t)bytes;
    return tk_pair((int8_t)(uint8_t)(word & 0xFFU), (int8_t)(uint8_t)((word >> 16) & 0xFFU));
#endif
}

/* Bytes 1 and 3 of a word, widened. */
static inline int32_t tk_sxtb16_odd(int32_t bytes)
{
#if TK_HAS_DSP
    int32_t pair;
    __asm__("sxtb16 %0, %1, ror #8" : "=r"(pair) : "r"(bytes));
    return pair;
#else
    return tk_sxtb16((int32_t)((uint32_t)bytes >> 8));
#endif
}

/* sum + low * low + high * high; wraps around. */
static inline int32_t tk_smlad(int32_t a, int32_t b, int32_t sum)
{
#if TK_HAS_DSP
    int32_t result;
    __asm__("smlad %0, %1, %2, %3" : "=r"(result) : "r"(a), "r"(b), "r"(sum));
    return result;
#else
    const uint32_t first = (uint32_t)(tk_low(a) * tk_low(b));
    return (int32_t)(first + (uint32_t)(tk_high(a) * tk_high(b)) + (uint32_t)sum);
#endif
}

/* addend + a * b / 2^32, the product rounded to nearest, halves upward; wraps around. */
static inline int32_t tk_smmlar(int32_t a, int32_t b, int32_t addend)
{
#if TK_HAS_DSP
    int32_t result;
    __asm__("smmlar %0, %1, %2, %3" : "=r"(result) : "r"(a), "r"(b), "r"(addend));
    return result;
#else
    const int64_t product = (int64_t)a * b + ((int64_t)1 << 31);
    return (int32_t)((uint32_t)(int32_t)(product >> 32) + (uint32_t)addend);
#endif
}

/* addend + a * b / 2^32, the product rounded down; wraps around. */
static inline int32_t tk_smmla(int32_t a, int32_t b, int32_t addend)
{
#if TK_HAS_DSP
    int32_t result;
    __asm__("smmla %0, %1, %2, %3" : "=r"(result) : "r"(a), "r"(b), "r"(addend));
    return result;
#else
    return (int32_t)((uint32_t)(int32_t)(((int64_t)a * b) >> 32) + (uint32_t)addend);
#endif
}

/* x limited to -128 .. 127. */
static inline int32_t tk_ssat8(int32_t x)
{
#if TK_HAS_DSP
    int32_t result;
    __asm__("ssat %0, #8, %1" : "=r"(result) : "r"(x));
    return result;
#else
    const int32_t limited = x < -128 ? -128 : x;
    return limited > 127 ? 127 : limited;
#endif
}

/* The lower halves of two words; their upper halves; the lower half of one and the upper half of the other. */
static inline int32_t tk_pack_low(int32_t first, int32_t second)
{
#if TK_HAS_DSP
    int32_t pair;
    __asm__("pkhbt %0, %1, %2, lsl #16" : "=r"(pair) : "r"(first), "r"(second));
    return pair;
#else
    return tk_pair(first, second);
#endif
}

static inline int32_t tk_pack_high(int32_t first, int32_t second)
{
#if TK_HAS_DSP
    int32_t pair;
    __asm__("pkhtb %0, %2, %1, asr #16" : "=r"(pair) : "r"(first), "r"(second));
    return pair;
#else
    return tk_pair(tk_high(first), tk_high(second));
#endif
}

static inline int32_t tk_pack_mixed(int32_t first, int32_t second)
{
#if TK_HAS_DSP
    int32_t pair;
    __asm__("pkhbt %0, %1, %2" : "=r"(pair) : "r"(first), "r"(second));
    return pair;
#else
    return tk_pair(first, tk_high(second));
#endif
}

/* Differences of both halves; wrap around. */
static inline int32_t tk_ssub16(int32_t a, int32_t b)
{
#if TK_HAS_DSP
    int32_t difference;
    __asm__("ssub16 %0, %1, %2" : "=r"(difference) : "r"(a), "r"(b));
    return difference;
#else
    return tk_pair(tk_low(a) - tk_low(b), tk_high(a) - tk_high(b));
#endif
}

#endif
