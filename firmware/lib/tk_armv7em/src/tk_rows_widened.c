#include "tk_armv7em_rows.h"

#include "tk_rows.h"

/* Channels of a block; words of its weights' constants, for one channel and for both. */
#define BLOCK 2
#define FACTORS(rows) ((rows)->form == TK_ROWS_SATURATING ? 2 : 3)
#define END(rows) ((rows)->form == TK_ROWS_SATURATING ? 5 : 6)

/* Both sums of a block for one column of `quads` quads at `x`, from the weights at `w`. */
static void sum_quads(const int32_t *x, const int32_t *w, int32_t quads, int32_t sums[BLOCK])
{
    int32_t a = sums[0];
    int32_t b = sums[1];
#if TK_HAS_DSP
    for (; quads >= 8; quads -= 8) {
        __asm__ volatile(".rept 4\n\t"
                         "ldmia %[x]!, {r4, r5, r6, r8}\n\t"
                         "ldmia %[w]!, {r9, r10, r11, r12}\n\t"
                         "smlad %[a], r4, r9, %[a]\n\t"
                         "smlad %[b], r4, r10, %[b]\n\t"
                         "smlad %[a], r5, r11, %[a]\n\t"
                         "smlad %[b], r5, r12, %[b]\n\t"
                         "ldmia %[w]!, {r9, r10, r11, r12}\n\t"
                         "smlad %[a], r6, r9, %[a]\n\t"
                         "smlad %[b], r6, r10, %[b]\n\t"
                         "smlad %[a], r8, r11, %[a]\n\t"
                         "smlad %[b], r8, r12, %[b]\n\t"
                         ".endr"
                         : [x] "+r"(x), [w] "+r"(w), [a] "+r"(a), [b] "+r"(b)
                         :
                         : "r4", "r5", "r6", "r8", "r9", "r10", "r11", "r12", "memory");
    }
#endif
    for (; quads > 0; quads--, x += 2, w += 2 * BLOCK) {
        a = tk_smlad(x[1], w[2], tk_smlad(x[0], w[0], a));
        b = tk_smlad(x[1], w[3], tk_smlad(x[0], w[1], b));
    }
    sums[0] = a;
    sums[1] = b;
}

void tk_rows_widened_1(const tk_rows_t *rows, const int32_t *column, int8_t *y)
{
    const int32_t *w = rows->stream;
    for (int32_t left = rows->out_c; left > 0; left -= BLOCK) {
        int32_t sums[BLOCK] = {w[0], w[1]};
        sum_quads(column, w + BLOCK, rows->depth / 4, sums);
        w += BLOCK + rows->depth;
        *y++ = tk_rows_output(rows, sums[0], w);
        if (left > 1) {
            *y++ = tk_rows_output(rows, sums[1], w + FACTORS(rows));
        }
        w += END(rows);
    }
    tk_rows_clamp(rows, y - rows->out_c, rows->out_c);
}

#if TK_HAS_DSP

/* Quads that one pass of the inner loop takes; the first pass of a block enters it in the middle. 36 are a window of
 * 3x3 with 16 channels. */
#define PASS 36
#define QUAD_BYTES 40
#define STRING_OF(x) #x
#define STRING(x) STRING_OF(x)

/* What the assembly of widened_blocks_2 does not keep in registers. */
typedef struct {
    const int32_t *x;                   /* columns of the pair */
    uint32_t entry;                     /* address of the first quad's code */
    const int32_t *x_end;
    uint32_t next;                      /* what follows a pass: `finish`, or the check whether it was the last one */
    uint32_t finish;                    /* requantisation */
    int8_t *y[2];
    const int32_t *w;
    int32_t quads, form, out_c, pairs;
} frame_t;

/* Blocks at `w` up to the first one that ends with bit 31, for each pair of columns. The first column of a pair has its
 * outputs at y0, the second one at y1; those of the next pair follow.
 *
 * r0 x, r1 w; sums of the first column r2, r3, of the second one r4, r5; x in r6 - r9, w in r10 - r12, lr. */
static __attribute__((noipa)) void widened_blocks_2(const tk_rows_t *rows, const int32_t *w, const int32_t *columns, int8_t *y0,
                                            int8_t *y1, int32_t pairs)
{
    const int32_t quads = rows->depth / 4;
    frame_t f = {.x = columns, .x_end = columns + rows->depth, .y = {y0, y1}, .w = w, .quads = quads};
    f.form = rows->form;
    f.out_c = rows->out_c;
    f.pairs = pairs;
    /* The first pass takes what whole ones leave, 1 .. PASS. */
    f.entry = (((uint32_t)quads - 1) % PASS + 1) * QUAD_BYTES;
    __asm__ volatile(
        "ldr r1, %[w]\n\t"
        "ldr r2, %[entry]\n\t"
        "adr.w r3, .Lpass_end%=\n\t"
        "sub r3, r3, r2\n\t"
        "orr r3, r3, #1\n\t"
        "str r3, %[entry]\n\t"
        "ldr r2, %[form]\n\t"
        "adr.w r3, .Ltwo_sided%=\n\t"
        "cmp r2, #1\n\t"
        "it eq\n\t"
        "adreq.w r3, .Lone_sided%=\n\t"
        "it hi\n\t"
        "adrhi.w r3, .Lsaturating%=\n\t"
        "orr r3, r3, #1\n\t"
        "str r3, %[finish]\n\t"
        "ldr r2, %[quads]\n\t"
        "cmp r2, #" STRING(PASS) "\n\t"
        "itt hi\n\t"
        "adrhi.w r3, .Lcheck%=\n\t"
        "orrhi r3, r3, #1\n\t"
        "str r3, %[next]\n"

        /* A block: biases, then into the first pass. */
        ".Lblock%=:\n\t"
        "ldrd r2, r3, [r1]\n\t"
        "ldrd r4, r5, [r1], #8\n\t"
        /* One instruction where the compiler puts the frame at the stack's end, as it does. */
        ".ifc %[x],[sp]\n\t"
        "ldmia.w sp, {r0, pc}\n\t"
        ".else\n\t"
        "ldr r0, %[x]\n\t"
        "ldr pc, %[entry]\n\t"
        ".endif\n\t"
        ".balign 8\n"
        ".Lpass%=:\n\t"
        ".rept " STRING(PASS) "\n\t"
        "ldmia.w r0!, {r6, r7, r8, r9}\n\t"
        "ldmia.w r1!, {r10, r11, r12, lr}\n\t"
        "smlad r2, r6, r10, r2\n\t"
        "smlad r3, r6, r11, r3\n\t"
        "smlad r4, r7, r10, r4\n\t"
        "smlad r5, r7, r11, r5\n\t"
        "smlad r2, r8, r12, r2\n\t"
        "smlad r3, r8, lr, r3\n\t"
        "smlad r4, r9, r12, r4\n\t"
        "smlad r5, r9, lr, r5\n\t"
        ".endr\n"
        ".Lpass_end%=:\n\t"
        "ldr pc, %[next]\n"
        /* Behind each pass, where there are several. */
        ".Lcheck%=:\n\t"
        "ldr r6, %[x_end]\n\t"
        "cmp r0, r6\n\t"
        "bne.w .Lpass%=\n\t"
        "ldr pc, %[finish]\n"

        ".Lone_sided%=:\n\t"
        "ldmia r1!, {r6, r7, r8, r9, r10, r11}\n\t"
        "smmlar r2, r2, r6, r7\n\t"
        "smmlar r3, r3, r9, r10\n\t"
        "smmlar r4, r4, r6, r7\n\t"
        "smmlar r5, r5, r9, r10\n\t"
        "b .Lshift%=\n"

        /* n of each sum is its sign. */
        ".Ltwo_sided%=:\n\t"
        "ldmia r1!, {r6, r7, r8, r9, r10, r11}\n\t"
        "smmlar r0, r2, r6, r7\n\t"
        "smmlar r12, r3, r9, r10\n\t"
        "add r2, r0, r2, asr #31\n\t"
        "add r3, r12, r3, asr #31\n\t"
        "smmlar r0, r4, r6, r7\n\t"
        "smmlar r12, r5, r9, r10\n\t"
        "add r4, r0, r4, asr #31\n\t"
        "add r5, r12, r5, asr #31\n"
        ".Lshift%=:\n\t"
        "ldrd r6, r7, %[y]\n\t"
        "asr r2, r2, r8\n\t"
        "asr r3, r3, r11\n\t"
        "asr r4, r4, r8\n\t"
        "asr r5, r5, r11\n\t"
        "ssat r2, #8, r2\n\t"
        "ssat r3, #8, r3\n\t"
        "ssat r4, #8, r4\n\t"
        "ssat r5, #8, r5\n\t"
        "strb r2, [r6], #1\n\t"
        "strb r3, [r6], #1\n\t"
        "strb r4, [r7], #1\n\t"
        "strb r5, [r7], #1\n\t"
        "strd r6, r7, %[y]\n\t"
        "cmp r11, #0\n\t"
        "bge.w .Lblock%=\n\t"
        "b .Lpair_end%=\n"

        ".Lsaturating%=:\n\t"
        "ldmia r1!, {r6, r7, r8, r9, r10}\n\t"
        "smmla r2, r2, r6, r7\n\t"
        "smmla r3, r3, r8, r9\n\t"
        "smmla r4, r4, r6, r7\n\t"
        "smmla r5, r5, r8, r9\n\t"
        "ldrd r6, r7, %[y]\n\t"
        "ssat r2, #8, r2, asr #" STRING(TK_ROWS_SHIFT) "\n\t"
        "ssat r3, #8, r3, asr #" STRING(TK_ROWS_SHIFT) "\n\t"
        "ssat r4, #8, r4, asr #" STRING(TK_ROWS_SHIFT) "\n\t"
        "ssat r5, #8, r5, asr #" STRING(TK_ROWS_SHIFT) "\n\t"
        "strb r2, [r6], #1\n\t"
        "strb r3, [r6], #1\n\t"
        "strb r4, [r7], #1\n\t"
        "strb r5, [r7], #1\n\t"
        "strd r6, r7, %[y]\n\t"
        "cmp r10, #0\n\t"
        "bge.w .Lblock%=\n"
        ".Lpair_end%=:\n\t"
        "ldr r2, %[pairs]\n\t"
        "subs r2, r2, #1\n\t"
        "beq .Lend%=\n\t"
        "str r2, %[pairs]\n\t"
        "ldr r3, %[x_end]\n\t"
        "str r3, %[x]\n\t"
        "ldr r4, %[quads]\n\t"
        "add r3, r3, r4, lsl #4\n\t"
        "str r3, %[x_end]\n\t"
        "ldr r5, %[out_c]\n\t"
        "add r6, r7, r5\n\t"
        "strd r7, r6, %[y]\n\t"
        "ldr r1, %[w]\n\t"
        "b .Lblock%=\n"
        ".Lend%=:"
        : [x] "+m"(f.x), [x_end] "+m"(f.x_end), [entry] "+m"(f.entry), [next] "+m"(f.next), [finish] "+m"(f.finish),
          [y] "+m"(f.y), [pairs] "+m"(f.pairs)
        : [w] "m"(f.w), [quads] "m"(f.quads), [form] "m"(f.form), [out_c] "m"(f.out_c)
        : "r0", "r1", "r2", "r3", "r4", "r5", "r6", "r7", "r8", "r9", "r10", "r11", "r12", "lr", "memory", "cc");
}

#else

static void widened_blocks_2(const tk_rows_t *rows, const int32_t *w, const int32_t *columns, int8_t *y0, int8_t *y1,
                     int32_t pairs)
{
    for (; pairs > 0; pairs--, columns += rows->depth) {
        const int32_t *block = w;
        do {
            int32_t sums[2][BLOCK] = {{block[0], block[1]}, {block[0], block[1]}};
            block += BLOCK;
            for (int32_t i = 0; i < rows->depth; i++) {
                sums[i % 2][0] = tk_smlad(columns[i], block[i / 2 * 2], sums[i % 2][0]);
                sums[i % 2][1] = tk_smlad(columns[i], block[i / 2 * 2 + 1], sums[i % 2][1]);
            }
            block += rows->depth;
            *y0++ = tk_rows_output(rows, sums[0][0], block);
            *y0++ = tk_rows_output(rows, sums[0][1], block + FACTORS(rows));
            *y1++ = tk_rows_output(rows, sums[1][0], block);
            *y1++ = tk_rows_output(rows, sums[1][1], block + FACTORS(rows));
            block += END(rows);
        } while (block[-1] >= 0);
        y0 = y1;
        y1 = y0 + rows->out_c;
    }
}

#endif

/* The last one of an odd number of channels, whose block the stream ends with. */
static void last_channel_2(const tk_rows_t *rows, const int32_t *columns, int8_t *y0, int8_t *y1)
{
    int8_t outputs[2][BLOCK];
    const int32_t words = BLOCK + rows->depth + END(rows);
    widened_blocks_2(rows, rows->stream + rows->out_c / BLOCK * words, columns, outputs[0], outputs[1], 1);
    y0[rows->out_c - 1] = outputs[0][0];
    y1[rows->out_c - 1] = outputs[1][0];
}

void tk_rows_widened_2(const tk_rows_t *rows, const int32_t *columns, int8_t *y0, int8_t *y1)
{
    if (rows->out_c >= BLOCK) {
        widened_blocks_2(rows, rows->stream, columns, y0, y1, 1);
    }
    if (rows->out_c % BLOCK) {
        last_channel_2(rows, columns, y0, y1);
    }
    tk_rows_clamp(rows, y0, rows->out_c);
    tk_rows_clamp(rows, y1, rows->out_c);
}

void tk_rows_widened_pairs(const tk_rows_t *rows, const int32_t *columns, int8_t *y, int32_t pairs)
{
    const int32_t out_c = rows->out_c;
    if (out_c % BLOCK) {
        for (; pairs > 0; pairs--, columns += rows->depth, y += 2 * out_c) {
            tk_rows_widened_2(rows, columns, y, y + out_c);
        }
        return;
    }
    widened_blocks_2(rows, rows->stream, columns, y, y + out_c, pairs);
    tk_rows_clamp(rows, y, 2 * pairs * out_c);
}
