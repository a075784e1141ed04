#include "tk_convolution.h"
#include "tk_rows.h"

/* F(2x2, 3x3) in integers. With 4x4 inputs d (2 pixels apart from tile to tile), taps g and 2x2 sums y:
 *
 *     B' = 1  0 -1  0     G = 1  0  0     A' = 1  1  1  0     y = A' [(G g G') * (B' d B)] A, * element by element
 *          0  1  1  0         1  1  1          0  1 -1 -1
 *          0 -1  1  0         1 -1  1
 *          0  1  0 -1         0  0  1
 *
 * Here rows 1 and 2 of G are twice the usual ones, so that A's sum and difference of products 1 and 2 must be halved: they are
 * always even, and shifts are exact. tinykd/kernels/armv7em/winograd.py proves that nothing leaves its type.
 *
 * Products come row by row, and of a row and of the rows 1, 2, 0, 3: the order in which A takes them. */
#define COMPONENTS 16
#define SIDE 4

/* Words of scratch memory before the band: doubled biases of two channels, sums on their way, products. */
enum { BIAS_WORDS = 2, SUM_WORDS = 8 * SIDE, PRODUCT_WORDS = COMPONENTS * SIDE };

/* Transforms two tiles p, q of 4x4 pixels of in_c channels, side by side in rows of 6 pixels: for each component, and each quad
 * of channels, the words p(0, 2), p(1, 3), q(0, 2), q(1, 3) go to x[component * in_c + 4 * quad]. `work` has 48 words. */
static __attribute__((noinline)) void transform(const int8_t *pixels, int32_t row_bytes, int32_t in_c, int32_t *x,
                                                int32_t *work)
{
#if TK_HAS_DSP
    struct {
        const int8_t *pixels;
        int32_t *x;
        const int8_t *end;
        int32_t in_c, row_bytes;
        int32_t *work;
    } f = {pixels, x, pixels + in_c, in_c, row_bytes, work};
/* A column of four pixels, times B': bytes 0, 2 (e) and 1, 3 (o) to words 0e 0o 1o 2e 2o 3e 3o 1e. */
#define TK_COLUMN                       \
    "ldr r4, [r0]\n"                    \
    "ldr r6, [r0, r2]\n"                \
    "ldr r8, [r0, r2, lsl #1]\n"        \
    "ldr r10, [r0, r12]\n"              \
    "sxtb16 r5, r4, ror #8\n"           \
    "sxtb16 r4, r4\n"                   \
    "sxtb16 r7, r6, ror #8\n"           \
    "sxtb16 r6, r6\n"                   \
    "sxtb16 r9, r8, ror #8\n"           \
    "sxtb16 r8, r8\n"                   \
    "sxtb16 r11, r10, ror #8\n"         \
    "sxtb16 r10, r10\n"                 \
    "ssub16 r4, r4, r8\n"               \
    "ssub16 r5, r5, r9\n"               \
    "ssub16 r10, r6, r10\n"             \
    "ssub16 r11, r7, r11\n"             \
    "sadd16 lr, r6, r8\n"               \
    "ssub16 r8, r8, r6\n"               \
    "sadd16 r6, r7, r9\n"               \
    "ssub16 r9, r9, r7\n"               \
    "stmia r1!, {r4, r5, r6, r8, r9, r10, r11, lr}\n"
#define TK_NEXT_COLUMN "add r0, r0, r3\n" TK_COLUMN
/* A row of four columns a, b, c, d, times B: components 1, 2, 0, 3 to r0 + at. */
#define TK_ROW(a0, a1, b0, b1, c0, c1, d0, d1, at)          \
    "sadd16 r2, " b0 ", " c0 "\n"                           \
    "sadd16 r12, " b1 ", " c1 "\n"                          \
    "strd r2, r12, [r0, #" at "]\n"                         \
    "add r0, r0, r3\n"                                      \
    "ssub16 r2, " c0 ", " b0 "\n"                           \
    "ssub16 r12, " c1 ", " b1 "\n"                          \
    "strd r2, r12, [r0, #" at "]\n"                         \
    "add r0, r0, r3\n"                                      \
    "ssub16 " a0 ", " a0 ", " c0 "\n"                       \
    "ssub16 " a1 ", " a1 ", " c1 "\n"                       \
    "strd " a0 ", " a1 ", [r0, #" at "]\n"                  \
    "add r0, r0, r3\n"                                      \
    "ssub16 " b0 ", " b0 ", " d0 "\n"                       \
    "ssub16 " b1 ", " b1 ", " d1 "\n"                       \
    "strd " b0 ", " b1 ", [r0, #" at "]\n"                  \
    "add r0, r0, r3\n"
/* Both tiles' rows; load(column, e, o) gets two words of a column. */
#define TK_ROWS(load)                                                       \
    load("0", "r4", "r5")                                                   \
    load("1", "r6", "r7")                                                   \
    load("2", "r8", "r9")                                                   \
    load("3", "r10", "r11")                                                 \
    TK_ROW("r4", "r5", "r6", "r7", "r8", "r9", "r10", "r11", "0")           \
    load("4", "r4", "r5")                                                   \
    load("5", "r6", "r7")                                                   \
    "sub r0, r0, r3, lsl #2\n"                                              \
    TK_ROW("r8", "r9", "r10", "r11", "r4", "r5", "r6", "r7", "8")
#define TK_LOAD_0(column, e, o) "ldrd " e ", " o ", [r1, #(32 * " column " - 192)]\n"
#define TK_LOAD_1(column, e, o) "ldr " e ", [r1, #(32 * " column " - 164)]\nldr " o ", [r1, #(32 * " column " - 184)]\n"
#define TK_LOAD_2(column, e, o) "ldrd " e ", " o ", [r1, #(32 * " column " - 180)]\n"
#define TK_LOAD_3(column, e, o) "ldrd " e ", " o ", [r1, #(32 * " column " - 172)]\n"
    __asm__ volatile(
        "1:\n"
        "ldr r0, %[pixels]\n"
        "ldr r1, %[work]\n"
        "ldr r2, %[row_bytes]\n"
        "ldr r3, %[in_c]\n"
        "add r12, r2, r2, lsl #1\n"
        TK_COLUMN
        TK_NEXT_COLUMN
        TK_NEXT_COLUMN
        TK_NEXT_COLUMN
        TK_NEXT_COLUMN
        TK_NEXT_COLUMN
        "lsl r3, r3, #2\n"
        "ldr r0, %[x]\n"
        TK_ROWS(TK_LOAD_1)
        TK_ROWS(TK_LOAD_2)
        TK_ROWS(TK_LOAD_0)
        TK_ROWS(TK_LOAD_3)
        "ldr r4, %[x]\n"
        "add r4, r4, #16\n"
        "str r4, %[x]\n"
        "ldr r5, %[pixels]\n"
        "add r5, r5, #4\n"
        "str r5, %[pixels]\n"
        "ldr r6, %[end]\n"
        "cmp r5, r6\n"
        "bne.w 1b\n"
        : [pixels] "+m"(f.pixels), [x] "+m"(f.x)
        : [end] "m"(f.end), [in_c] "m"(f.in_c), [row_bytes] "m"(f.row_bytes), [work] "m"(f.work)
        : "r0", "r1", "r2", "r3", "r4", "r5", "r6", "r7", "r8", "r9", "r10", "r11", "r12", "lr", "cc", "memory");
#else
    static const uint8_t order[SIDE] = {1, 2, 0, 3};
    (void)work;
    for (int32_t i = 0; i < 2 * in_c; i++) {
        const int32_t tile = i / in_c, c = i % in_c;
        int32_t columns[SIDE][SIDE];
        for (int32_t k = 0; k < SIDE; k++) {
            const int8_t *d = pixels + (2 * tile + k) * in_c + c;
            columns[k][0] = d[0] - d[2 * row_bytes];
            columns[k][1] = d[row_bytes] + d[2 * row_bytes];
            columns[k][2] = d[2 * row_bytes] - d[row_bytes];
            columns[k][3] = d[row_bytes] - d[3 * row_bytes];
        }
        for (int32_t j = 0; j < SIDE; j++) {
            const int32_t k = order[j];
            const int32_t row[SIDE] = {columns[1][k] + columns[2][k], columns[2][k] - columns[1][k],
                                       columns[0][k] - columns[2][k], columns[1][k] - columns[3][k]};
            for (int32_t component = 0; component < SIDE; component++) {
                int32_t *word = x + (SIDE * j + component) * in_c + c / 4 * 4 + 2 * tile + c % 2;
                *word = c % 4 < 2 ? tk_pair(row[component], 0) : tk_pair(tk_low(*word), row[component]);
            }
        }
    }
#endif
}

/* The products of two tiles p, q and two channels a, b, summed over the inputs: for each component pa, pb, qa, qb. w holds for
 * each component and quad a(0, 2), b(0, 2), a(1, 3), b(1, 3); returns where it ends. `quads` is 1 .. 16. */
static __attribute__((noinline)) const int32_t *multiply(const int32_t *x, const int32_t *w, int32_t *products, int32_t quads)
{
#if TK_HAS_DSP
    struct {
        int32_t *products;
        const int32_t *end;
        int32_t entry;
    } f = {products, products + PRODUCT_WORDS, (quads - 1) * 40};
    register const int32_t *inputs __asm__("r0") = x;
    register const int32_t *weights __asm__("r1") = w;
    __asm__ volatile(
        "adr.w r6, 2f\n"
        "ldr r7, %[entry]\n"
        "sub r6, r6, r7\n"
        "orr r6, r6, #1\n"
        "str r6, %[entry]\n"
        "1:\n"
        "ldmia.w r0!, {r6-r9}\n"
        "ldmia.w r1!, {r10-r12, lr}\n"
        "smuad r2, r6, r10\n"
        "smuad r3, r6, r11\n"
        "smuad r4, r8, r10\n"
        "smuad r5, r8, r11\n"
        "smlad r2, r7, r12, r2\n"
        "smlad r3, r7, lr, r3\n"
        "smlad r4, r9, r12, r4\n"
        "smlad r5, r9, lr, r5\n"
        "ldr.w pc, %[entry]\n"
        /* A quad in ten instructions of 4 bytes each; as many of them run as are left. */
        ".rept 15\n"
        "ldmia.w r0!, {r6-r9}\n"
        "ldmia.w r1!, {r10-r12, lr}\n"
        "smlad r2, r6, r10, r2\n"
        "smlad r3, r6, r11, r3\n"
        "smlad r4, r8, r10, r4\n"
        "smlad r5, r8, r11, r5\n"
        "smlad r2, r7, r12, r2\n"
        "smlad r3, r7, lr, r3\n"
        "smlad r4, r9, r12, r4\n"
        "smlad r5, r9, lr, r5\n"
        ".endr\n"
        "2:\n"
        "ldr r6, %[products]\n"
        "stmia r6!, {r2-r5}\n"
        "str r6, %[products]\n"
        "ldr r7, %[end]\n"
        "cmp r6, r7\n"
        "bne.w 1b\n"
        : "+r"(inputs), "+r"(weights), [products] "+m"(f.products), [entry] "+m"(f.entry)
        : [end] "m"(f.end)
        : "r2", "r3", "r4", "r5", "r6", "r7", "r8", "r9", "r10", "r11", "r12", "lr", "cc", "memory");
    return weights;
#else
    for (int32_t i = 0; i < COMPONENTS; i++, products += SIDE) {
        int32_t sums[SIDE] = {0};
        for (int32_t quad = 0; quad < quads; quad++, x += 4, w += 4) {
            for (int32_t k = 0; k < SIDE; k++) {
                const int32_t *tile = x + k / 2 * 2;
                sums[k] = tk_smlad(tile[1], w[2 + k % 2], tk_smlad(tile[0], w[k % 2], sums[k]));
            }
        }
        for (int32_t k = 0; k < SIDE; k++) {
            products[k] = sums[k];
        }
    }
    return w;
#endif
}

/* The 2x2 sums of two tiles p, q and two channels a, b from their products: row by row pa, pb, qa, qb, at `sums`. The doubled
 * biases of a and b stand before it. */
static __attribute__((noinline)) void add_up(const int32_t *products, int32_t *sums)
{
#if TK_HAS_DSP
    register const int32_t *from __asm__("r0") = products;
    register int32_t *to __asm__("r1") = sums;
/* r6 .. r9 = r2 .. r5 - r6 .. r9, r2 .. r5 = their sum. */
#define TK_DIFFERENCE_AND_SUM           \
    "sub r6, r2, r6\n"                  \
    "sub r7, r3, r7\n"                  \
    "sub r8, r4, r8\n"                  \
    "sub r9, r5, r9\n"                  \
    "rsb r2, r6, r2, lsl #1\n"          \
    "rsb r3, r7, r3, lsl #1\n"          \
    "rsb r4, r8, r4, lsl #1\n"          \
    "rsb r5, r9, r5, lsl #1\n"
#define TK_FIRST                        \
    "add r10, r10, r2, asr #1\n"        \
    "add r11, r11, r3, asr #1\n"        \
    "add r12, r12, r4, asr #1\n"        \
    "add lr, lr, r5, asr #1\n"
#define TK_SECOND                       \
    "rsb r10, r10, r6, asr #1\n"        \
    "rsb r11, r11, r7, asr #1\n"        \
    "rsb r12, r12, r8, asr #1\n"        \
    "rsb lr, lr, r9, asr #1\n"
#define TK_PRODUCTS                     \
    "ldmia r0!, {r2-r5}\n"              \
    "ldmia r0!, {r6-r9}\n"              \
    TK_DIFFERENCE_AND_SUM               \
    "ldmia r0!, {r10-r12, lr}\n"        \
    TK_FIRST                            \
    "stmia r1!, {r10-r12, lr}\n"        \
    "ldmia r0!, {r10-r12, lr}\n"        \
    TK_SECOND                           \
    "stmia r1!, {r10-r12, lr}\n"
#define TK_SUMS(column)                                    \
    "ldrd r2, r3, [r1, #(" column ")]\n"                   \
    "ldrd r4, r5, [r1, #(" column " + 8)]\n"               \
    "ldrd r6, r7, [r1, #(" column " + 32)]\n"              \
    "ldrd r8, r9, [r1, #(" column " + 40)]\n"              \
    "ldrd r10, r11, [r1, #-8]\n"                        \
    "add r2, r2, r10\n"                                 \
    "add r3, r3, r11\n"                                 \
    "add r4, r4, r10\n"                                 \
    "add r5, r5, r11\n"                                 \
    TK_DIFFERENCE_AND_SUM                               \
    "ldrd r10, r11, [r1, #(" column " + 64)]\n"            \
    "ldrd r12, lr, [r1, #(" column " + 72)]\n"             \
    TK_FIRST                                            \
    "strd r10, r11, [r1, #(" column ")]\n"                 \
    "strd r12, lr, [r1, #(" column " + 8)]\n"              \
    "ldrd r10, r11, [r1, #(" column " + 96)]\n"            \
    "ldrd r12, lr, [r1, #(" column " + 104)]\n"            \
    TK_SECOND                                           \
    "strd r10, r11, [r1, #(" column " + 32)]\n"            \
    "strd r12, lr, [r1, #(" column " + 40)]\n"
    __asm__ volatile(
        TK_PRODUCTS
        TK_PRODUCTS
        TK_PRODUCTS
        TK_PRODUCTS
        "sub r1, r1, #128\n"
        TK_SUMS("0")
        TK_SUMS("16")
        : "+r"(from), "+r"(to)
        :
        : "r2", "r3", "r4", "r5", "r6", "r7", "r8", "r9", "r10", "r11", "r12", "lr", "cc", "memory");
#else
    const uint32_t *m = (const uint32_t *)products;
    for (int32_t k = 0; k < SIDE; k++) {
        uint32_t halves[2][SIDE];
        for (int32_t i = 0; i < SIDE; i++) {
            const uint32_t *row = m + 4 * SIDE * i + k;
            halves[0][i] = row[8] + (uint32_t)((int32_t)(row[0] + row[4]) >> 1);
            halves[1][i] = (uint32_t)((int32_t)(row[0] - row[4]) >> 1) - row[12];
        }
        for (int32_t column = 0; column < 2; column++) {
            const uint32_t *u = halves[column], twice_bias = (uint32_t)sums[k % 2 - BIAS_WORDS];
            sums[4 * column + k] = (int32_t)(u[2] + (uint32_t)((int32_t)(u[0] + u[1] + twice_bias) >> 1));
            sums[8 + 4 * column + k] = (int32_t)((uint32_t)((int32_t)(u[0] - u[1] + twice_bias) >> 1) - u[3]);
        }
    }
#endif
}

/* Outputs of two tiles and two channels from their sums: two rows of four pixels `out_c` bytes apart, at row0 and row1.
 * `factors` has multiplier, addend and shift of each channel. */
static __attribute__((noinline)) void put(const tk_rows_t *rows, const int32_t *sums, const int32_t *factors, int8_t *row0,
                                          int8_t *row1)
{
    const int32_t out_c = rows->out_c;
#if TK_HAS_DSP
    struct {
        int8_t *row1;
        int32_t out_c;
    } f = {row1, out_c};
    register const int32_t *from __asm__("r0") = sums;
    register int8_t *to __asm__("r1") = row0;
    register const int32_t *constants __asm__("r2") = factors;
/* pa, pb, qa, qb in r9 .. r12 to bytes a, b of the pixels at `row` and 2 * out_c bytes on. */
#define TK_STORE(row)                       \
    "ldr r2, %[out_c]\n"                    \
    "bfi r9, r10, #8, #8\n"                 \
    "bfi r11, r12, #8, #8\n"                \
    "strh r11, [" row ", r2, lsl #1]\n"     \
    "strh r9, [" row "]\n"
#define TK_STORE_AND_MOVE_ON(row) TK_STORE(row) "add " row ", " row ", r2\n"
#define TK_SATURATING                       \
    "ldmia r0!, {r9-r12}\n"                 \
    "smmla r9, r9, r3, r4\n"                \
    "smmla r10, r10, r6, r7\n"              \
    "smmla r11, r11, r3, r4\n"              \
    "smmla r12, r12, r6, r7\n"              \
    "ssat r9, #8, r9, asr #10\n"            \
    "ssat r10, #8, r10, asr #10\n"          \
    "ssat r11, #8, r11, asr #10\n"          \
    "ssat r12, #8, r12, asr #10\n"
#define TK_TWO_SIDED                        \
    "ldmia r0!, {r9-r12}\n"                 \
    "smmlar r2, r9, r3, r4\n"               \
    "add r2, r2, r9, asr #31\n"             \
    "asr r2, r2, r5\n"                      \
    "ssat r9, #8, r2\n"                     \
    "smmlar r2, r10, r6, r7\n"              \
    "add r2, r2, r10, asr #31\n"            \
    "asr r2, r2, r8\n"                      \
    "ssat r10, #8, r2\n"                    \
    "smmlar r2, r11, r3, r4\n"              \
    "add r2, r2, r11, asr #31\n"            \
    "asr r2, r2, r5\n"                      \
    "ssat r11, #8, r2\n"                    \
    "smmlar r2, r12, r6, r7\n"              \
    "add r2, r2, r12, asr #31\n"            \
    "asr r2, r2, r8\n"                      \
    "ssat r12, #8, r2\n"
#define TK_OUTPUTS(form)                    \
    "ldmia r2, {r3-r8}\n"                   \
    "ldr lr, %[row1]\n"                     \
    form TK_STORE_AND_MOVE_ON("r1")         \
    form TK_STORE("r1")                     \
    form TK_STORE_AND_MOVE_ON("lr")         \
    form TK_STORE("lr")
#define TK_CLOBBERED "r3", "r4", "r5", "r6", "r7", "r8", "r9", "r10", "r11", "r12", "lr", "memory"
    if (rows->form == TK_ROWS_SATURATING) {
        __asm__ volatile(TK_OUTPUTS(TK_SATURATING)
                         : "+r"(from), "+r"(to), "+r"(constants)
                         : [row1] "m"(f.row1), [out_c] "m"(f.out_c)
                         : TK_CLOBBERED);
    } else {
        __asm__ volatile(TK_OUTPUTS(TK_TWO_SIDED)
                         : "+r"(from), "+r"(to), "+r"(constants)
                         : [row1] "m"(f.row1), [out_c] "m"(f.out_c)
                         : TK_CLOBBERED);
    }
#else
    for (int32_t i = 0; i < 16; i++) {
        const int32_t pixel = i % 4 / 2 * 2 + i / 4 % 2, channel = i % 2;
        int8_t *const y = (i < 8 ? row0 : row1) + pixel * out_c + channel;
        *y = tk_rows_output(rows, sums[i], factors + 3 * channel);
    }
#endif
}

void tk_convolution_winograd(const tk_convolution_t *p, const int8_t *x, int8_t *y, int8_t *scratch)
{
    const int32_t in_c = p->in_c, out_c = p->rows.out_c;
    int32_t *const tiles = (int32_t *)(void *)scratch;
    int32_t *const sums = tiles + COMPONENTS * in_c + BIAS_WORDS;
    int32_t *const products = sums + SUM_WORDS;
    int8_t *const spare = (int8_t *)(products + PRODUCT_WORDS);
    for (int32_t row = 0; row < p->out_h; row += 2) {
        const tk_band_t band = tk_convolution_band(p, x, row, 2, spare + 8 * out_c);
        for (int32_t column = 0; column < p->out_w; column += 4) {
            const int8_t *const window = band.windows + column * in_c;
            transform(window, band.row_bytes, in_c, tiles, products);
            const int32_t width = p->out_w - column < 4 ? p->out_w - column : 4;
            const int32_t height = p->out_h - row < 2 ? 1 : 2;
            const int32_t is_cut = width < 4 || height < 2;
            int8_t *const first = is_cut ? spare : y + (row * p->out_w + column) * out_c;
            const int32_t step = is_cut ? 4 * out_c : p->out_w * out_c;
            const int32_t *w = p->rows.stream;
            for (int32_t c = 0; c < out_c; c += 2, w += 8) {
                w = multiply(tiles, w, products, in_c / 4);
                sums[-2] = w[0];
                sums[-1] = w[1];
                add_up(products, sums);
                put(&p->rows, sums, w + BIAS_WORDS, first + c, first + step + c);
            }
            for (int32_t i = 0; is_cut && i < height; i++) {
                __builtin_memcpy(y + ((row + i) * p->out_w + column) * out_c, spare + i * step, (uint32_t)(width * out_c));
            }
        }
    }
}
