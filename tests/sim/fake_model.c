/* A model small enough to check by hand, behind the same interface as a generated one: 64 int8 in, 10 out, 3 ops.
 * Op 0 writes x[i] + 1 behind the input, op 1 adds neighbours through a helper function, op 2 keeps every sixth element.
 * Its state counts inferences; op 2 leaves it in the last byte of the arena.
 * Compiled with TK_TEST_FAULT it does what a broken firmware might do when the first input byte asks for it. */
#include "tk_board.h"
#include "tk_model.h"

#define INPUT 64
#define OUTPUT 10

static int8_t arena[256] __attribute__((aligned(16)));
uint32_t tk_model_op_cycles[3];

const tk_model_info_t tk_model_info = {
    .name = "fake",
    .engine = "tinykd",
    .board = TK_BOARD_NAME,
    .sha256 = {0x01, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef},
    .input_bytes = INPUT,
    .output_bytes = OUTPUT,
    .arena_bytes = sizeof arena,
    .num_ops = 3,
    .state_bytes = sizeof(int8_t),
};

static int8_t state;

void tk_model_reset_state(void)
{
    state = 0;
}

int8_t *tk_model_input(void)
{
    return arena;
}

const int8_t *tk_model_output(void)
{
    return arena + 192;
}

const int8_t *tk_model_arena(void)
{
    return arena;
}

__attribute__((noinline)) int8_t helper(int8_t a, int8_t b)
{
    volatile int8_t sum = (int8_t)(a + b);
    return sum;
}

__attribute__((noinline)) void tk_op_000(void)
{
    for (int i = 0; i < INPUT; i++) {
        arena[64 + i] = (int8_t)(arena[i] + 1);
    }
#ifdef TK_TEST_FAULT
    if (arena[0] == 1) {
        *(volatile uint32_t *)0x08000000 = 1; /* flash */
    }
    if (arena[0] == 2) {
        *(volatile uint32_t *)0x30000000 = 1; /* nothing there */
    }
    if (arena[0] == 3) {
        __asm volatile("udf #0");
    }
    if (arena[0] == 4) {
        for (;;) {
        }
    }
    if (arena[0] == 5) {
        ((void (*)(void))0x20000000)(); /* an even address: Arm state, which this core does not have */
    }
#endif
}

__attribute__((noinline)) void tk_op_001(void)
{
    for (int i = 0; i < INPUT; i++) {
        arena[128 + i] = helper(arena[64 + i], arena[64 + (i + 1) % INPUT]);
    }
}

__attribute__((noinline)) void tk_op_002(void)
{
    volatile float scale = 1.0F; /* the FPU must be on */
    for (int i = 0; i < OUTPUT; i++) {
        arena[192 + i] = (int8_t)((float)arena[128 + 6 * i] * scale);
    }
    arena[255] = ++state;
}

void tk_model_run_op(uint32_t op)
{
    switch (op) {
    case 0: tk_op_000(); break;
    case 1: tk_op_001(); break;
    case 2: tk_op_002(); break;
    default: break;
    }
}
