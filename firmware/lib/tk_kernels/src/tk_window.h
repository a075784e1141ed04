/* The part of a sliding window that lies inside the input, along one axis. */
#ifndef TK_WINDOW_H
#define TK_WINDOW_H

#include <stdint.h>

typedef struct {
    int32_t origin;         /* input position of tap 0; negative or beyond the input in the padding */
    int32_t first, last;    /* taps first .. last - 1 lie inside the input; first = last = 0: none does */
} tk_window_t;

/* Window number `index` of an axis with `size` input positions. */
static inline tk_window_t tk_window(int32_t index, int32_t stride, int32_t pad, int32_t kernel, int32_t dilation, int32_t size)
{
    tk_window_t window;
    window.origin = index * stride - pad;
    window.first = 0;
    window.last = kernel;
    if (window.origin < 0) {
        window.first = (dilation - 1 - window.origin) / dilation;
    }
    if (window.origin + (kernel - 1) * dilation >= size) {
        window.last = window.origin < size ? (size - 1 - window.origin) / dilation + 1 : 0;
    }
    if (window.first >= window.last) {
        window.first = 0;
        window.last = 0;
    }
    return window;
}

#endif
