/* Portable int8 kernels, equal to TFLite Micro's reference kernels in every output bit.
 *
 * Tensors are int8 in NHWC order with N = 1 and no gaps; where bytes stand for wider integers, the kernel says so. Every
 * kernel is a function of its arguments alone: no heap, no recursion, no static data, no scratch memory beyond its stack
 * frame, and no check of its arguments - the code generator checks them once. Only tk_svdf has memory, in a state that it is
 * given. Input and output must not overlap unless a kernel says so. Parameters live in flash.
 *
 * A kernel can be replaced by a faster one of the same signature for the shapes that the faster one can do; the code
 * generator picks the first row of its table (tinykd/kernels/__init__.py) whose condition holds.
 *
 * Folded bias. Where a parameter is called `bias`, it holds bias[c] - input_zero * (sum of the weights of channel c), so
 * that the inner loop multiplies raw inputs. Positions in the padding then count as input_zero. The code generator proves
 * that no sum can leave int32: |bias| + 256 * sum |weight| < 2^31 for each channel.
 *
 * Requantisation. acc becomes clamp(requantize(acc, multiplier, shift) + out_zero, out_min, out_max); tk_requantize.h.
 */
#ifndef TK_KERNELS_H
#define TK_KERNELS_H

#include <stdint.h>

/* Convolution and depthwise convolution. Sizes in elements, at least 1. */
typedef struct {
    uint16_t in_h, in_w, in_c;          /* input (in_h, in_w, in_c) */
    uint16_t out_h, out_w, out_c;       /* output (out_h, out_w, out_c) */
    uint16_t kernel_h, kernel_w;
    uint16_t stride_h, stride_w;
    uint16_t dilation_h, dilation_w;    /* 1: none */
    uint16_t pad_top, pad_left;         /* rows and columns before the input; those after it follow from out_h, out_w */
    int16_t in_zero, out_zero;          /* zero points, -128 .. 127 */
    int16_t out_min, out_max;           /* clamp, within -128 .. 127 */
    const int8_t *weights;              /* tk_conv_2d: (out_c, kernel_h, kernel_w, in_c);
                                           tk_depthwise_conv_2d: (kernel_h, kernel_w, out_c) */
    const int32_t *bias;                /* (out_c), folded */
    const int32_t *multiplier;          /* (out_c) */
    const int8_t *shift;                /* (out_c) */
} tk_conv_2d_t;

/* Any convolution. */
void tk_conv_2d(const tk_conv_2d_t *params, const int8_t *x, int8_t *y);

/* Convolution with kernel 1x1, stride 1 and no padding. */
void tk_conv_2d_1x1(const tk_conv_2d_t *params, const int8_t *x, int8_t *y);

/* Any depthwise convolution: output channel c reads input channel c / (out_c / in_c). */
void tk_depthwise_conv_2d(const tk_conv_2d_t *params, const int8_t *x, int8_t *y);

/* Depthwise convolution with in_c = out_c. */
void tk_depthwise_conv_2d_m1(const tk_conv_2d_t *params, const int8_t *x, int8_t *y);

/* Fully connected layer: y[o] from x (in_c) and weights (out_c, in_c). */
typedef struct {
    int32_t in_c, out_c;
    int16_t out_zero, out_min, out_max;
    uint16_t channel_step;              /* 0: one multiplier and shift for all outputs; 1: one for each */
    const int8_t *weights;              /* (out_c, in_c) */
    const int32_t *bias;                /* (out_c), folded */
    const int32_t *multiplier;          /* (1) or (out_c) */
    const int8_t *shift;                /* (1) or (out_c) */
} tk_fully_connected_t;

void tk_fully_connected(const tk_fully_connected_t *params, const int8_t *x, int8_t *y);

/* Elementwise sum of two tensors of `count` elements. y may be a or b. */
typedef struct {
    int32_t count;
    int16_t a_zero, b_zero, out_zero, out_min, out_max;
    int8_t a_shift, b_shift, out_shift;
    int32_t a_multiplier, b_multiplier, out_multiplier;
} tk_add_t;

/* Bits by which both inputs of tk_add are shifted left before they are scaled. */
#define TK_ADD_LEFT_SHIFT 20

void tk_add(const tk_add_t *params, const int8_t *a, const int8_t *b, int8_t *y);

/* Pooling over windows; positions in the padding do not take part. */
typedef struct {
    uint16_t in_h, in_w, channels;
    uint16_t out_h, out_w;
    uint16_t kernel_h, kernel_w;
    uint16_t stride_h, stride_w;
    uint16_t pad_top, pad_left;
    int16_t out_min, out_max;
} tk_pool_2d_t;

/* Mean of each window, rounded to nearest, halves away from zero; input and output have the same quantisation. */
void tk_average_pool_2d(const tk_pool_2d_t *params, const int8_t *x, int8_t *y);

/* Maximum of each window. */
void tk_max_pool_2d(const tk_pool_2d_t *params, const int8_t *x, int8_t *y);

/* Mean of x (area, channels) over its rows: requantize(sum of x - zero_sum) + out_zero, the division by `area` folded into
 * the multiplier. area at most 2^23. */
typedef struct {
    int32_t area;                       /* H * W where the mean is over H and W */
    int32_t channels;
    int32_t zero_sum;                   /* area * input zero point */
    int32_t multiplier;                 /* input scale / output scale / area */
    int16_t out_zero;
    int8_t shift;
} tk_mean_t;

void tk_mean(const tk_mean_t *params, const int8_t *x, int8_t *y);

/* x (in_h, in_w, channels) with a border of `value`: y (pad_top + in_h + pad_bottom, pad_left + in_w + pad_right, channels). */
typedef struct {
    uint16_t in_h, in_w, channels;
    uint16_t pad_top, pad_bottom, pad_left, pad_right;
    int16_t value;
} tk_pad_t;

void tk_pad(const tk_pad_t *params, const int8_t *x, int8_t *y);

/* Softmax over the last axis of x (rows, channels); output scale 1/256, zero point -128. At most 4095 channels. y may be
 * x. exp and 1/x are polynomials in 32-bit fixed point. */
typedef struct {
    int32_t rows, channels;
    int32_t multiplier;                 /* difference to the maximum -> fixed point with 5 integer bits, ... */
    int32_t left_shift;                 /* ... after a shift to the left by 0 .. 30 */
    int32_t diff_min;                   /* differences below this one give probability 0 */
} tk_softmax_t;

void tk_softmax(const tk_softmax_t *params, const int8_t *x, int8_t *y);

/* Loops over two operands whose shapes broadcast. The output is written without gaps: size[0] * .. * size[3] elements, the
 * last axis fastest. A step of 0 repeats an operand along an axis. */
#define TK_BROADCAST_RANK 4

typedef struct {
    int32_t size[TK_BROADCAST_RANK];    /* at least 1; outermost first */
    int32_t a_step[TK_BROADCAST_RANK];  /* elements from one position to the next */
    int32_t b_step[TK_BROADCAST_RANK];
} tk_broadcast_t;

/* Elementwise sum and difference a - b of operands that broadcast; the arithmetic of tk_add. `core.count` is not read.
 * y may be an operand that does not repeat. */
typedef struct {
    tk_add_t core;
    tk_broadcast_t shape;
} tk_add_broadcast_t;

void tk_add_broadcast(const tk_add_broadcast_t *params, const int8_t *a, const int8_t *b, int8_t *y);
void tk_sub(const tk_add_broadcast_t *params, const int8_t *a, const int8_t *b, int8_t *y);

/* Elementwise product: requantize((a - a_zero) * (b - b_zero)) + out_zero. y may be an operand that does not repeat. */
typedef struct {
    tk_broadcast_t shape;
    int16_t a_zero, b_zero, out_zero, out_min, out_max;
    int8_t shift;
    int32_t multiplier;
} tk_mul_t;

void tk_mul(const tk_mul_t *params, const int8_t *a, const int8_t *b, int8_t *y);

/* Elementwise maximum and minimum; operands and output have the same quantisation. y may be an operand that does not
 * repeat. */
void tk_maximum(const tk_broadcast_t *shape, const int8_t *a, const int8_t *b, int8_t *y);
void tk_minimum(const tk_broadcast_t *shape, const int8_t *a, const int8_t *b, int8_t *y);

/* a where a is at least its zero point, else a * b (the slopes), each rescaled by a factor of its own. y may be a. */
typedef struct {
    tk_broadcast_t shape;
    int16_t a_zero, b_zero, out_zero;
    int8_t positive_shift, negative_shift;
    int32_t positive_multiplier, negative_multiplier;
} tk_prelu_t;

void tk_prelu(const tk_prelu_t *params, const int8_t *a, const int8_t *b, int8_t *y);

/* Any function of one int8 value: y[i] = table[x[i] + 128] for `count` elements. y may be x. */
typedef struct {
    int32_t count;
    const int8_t *table;                /* (256) */
} tk_lookup_t;

void tk_lookup(const tk_lookup_t *params, const int8_t *x, int8_t *y);

/* Copies blocks of `run` bytes between two layouts: transposition, slicing, joining and cutting. x and y point to the
 * block with all indices 0; steps are in bytes and may be negative. */
#define TK_COPY_RANK 4

typedef struct {
    int32_t size[TK_COPY_RANK];         /* blocks along each axis, at least 1; outermost first */
    int32_t in_step[TK_COPY_RANK];
    int32_t out_step[TK_COPY_RANK];
    int32_t run;                        /* at least 1 */
} tk_copy_t;

void tk_copy(const tk_copy_t *params, const int8_t *x, int8_t *y);

/* Padding along any axes: y (count) becomes `value`, then x is copied to y + origin. */
typedef struct {
    tk_copy_t copy;
    int32_t count;
    int32_t origin;
    int16_t value;
} tk_pad_nd_t;

void tk_pad_nd(const tk_pad_nd_t *params, const int8_t *x, int8_t *y);

/* x (.., in_w, channels) to y (out_h, out_w, channels): each output position takes the input position of its row and
 * column in the tables. */
typedef struct {
    uint16_t in_w, channels;
    uint16_t out_h, out_w;
    const uint16_t *rows;               /* (out_h), input rows */
    const uint16_t *columns;            /* (out_w), input columns */
} tk_resize_nearest_t;

void tk_resize_nearest(const tk_resize_nearest_t *params, const int8_t *x, int8_t *y);

/* Transposed convolution; output row r collects input row i and kernel row k where i * stride_h + k = r + pad_top.
 * `bias` is not folded. */
typedef struct {
    uint16_t in_h, in_w, in_c;
    uint16_t out_h, out_w, out_c;
    uint16_t kernel_h, kernel_w;
    uint16_t stride_h, stride_w;
    int16_t pad_top, pad_left;          /* rows and columns cut off; negative: rows and columns of bias alone */
    int16_t in_zero, out_zero, out_min, out_max;
    const int8_t *weights;              /* (out_c, kernel_h, kernel_w, in_c) */
    const int32_t *bias;                /* (out_c) */
    const int32_t *multiplier;          /* (out_c) */
    const int8_t *shift;                /* (out_c) */
} tk_transpose_conv_t;

void tk_transpose_conv(const tk_transpose_conv_t *params, const int8_t *x, int8_t *y);

/* Mean over any axes: `core` as for tk_mean, but area and channels are not read. Steps in elements. */
#define TK_MEAN_RANK 3

typedef struct {
    tk_mean_t core;
    int32_t size[TK_MEAN_RANK];         /* of the axes that stay, outermost first, at least 1 */
    int32_t step[TK_MEAN_RANK];
    int32_t sum_size[TK_MEAN_RANK];     /* of the axes that are averaged */
    int32_t sum_step[TK_MEAN_RANK];
} tk_mean_axes_t;

void tk_mean_axes(const tk_mean_axes_t *params, const int8_t *x, int8_t *y);

/* Index of the largest element along the middle axis of x (outer, count, inner), the first of equals. y: (outer, inner)
 * int32 in the byte order of the core. */
typedef struct {
    int32_t outer, count, inner;
} tk_arg_max_t;

void tk_arg_max(const tk_arg_max_t *params, const int8_t *x, int8_t *y);

/* A layer with memory (SVDF): each filter appends the product of its feature weights with x to its last `memory` values,
 * and y[u] sums time weights times those values over the `rank` filters of unit u.
 *
 * `state` holds (filters, memory) int16 in the byte order of the core, aligned to 2 bytes, the oldest first; it is 0 before
 * the first inference. */
typedef struct {
    int32_t in_c, filters, rank, memory;
    int16_t out_zero, out_min, out_max;
    int8_t feature_shift, out_shift;
    int32_t feature_multiplier, out_multiplier;
    const int8_t *feature_weights;      /* (filters, in_c) */
    const int32_t *feature_bias;        /* (filters): -input zero point * sum of the feature weights */
    const int16_t *time_weights;        /* (filters, memory) */
    const int32_t *bias;                /* (filters / rank) */
} tk_svdf_t;

void tk_svdf(const tk_svdf_t *params, const int8_t *x, int8_t *state, int8_t *y);

#endif
