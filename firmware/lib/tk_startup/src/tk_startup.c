/* From reset to main, and what happens on a fault. The firmware uses no interrupts: the table ends at SysTick.
 *
 * A fault, or a return from main, never hangs in silence: the chip is reset, the firmware announces itself again, and the
 * host, which knows that it sent no reset, reports that the device restarted. */
#include <stdint.h>

#include "tk_armv7m.h"

extern uint32_t tk_stack_top, tk_data_image, tk_data_start, tk_data_end, tk_bss_start, tk_bss_end;

int main(void);

_Noreturn void tk_reset_handler(void);
_Noreturn void tk_fault_handler(void);

typedef union {
    void (*handler)(void);
    const uint32_t *stack_top;
    uintptr_t unused;
} tk_vector_t;

/* Exceptions 0 (initial stack pointer) to 15 (SysTick), ARM DDI 0403E section B1.5.2. */
__attribute__((section(".vectors"), used)) static const tk_vector_t vectors[16] = {
    [0] = {.stack_top = &tk_stack_top},
    [1] = {.handler = tk_reset_handler},
    [2] = {.handler = tk_fault_handler},  /* NMI */
    [3] = {.handler = tk_fault_handler},  /* HardFault */
    [4] = {.handler = tk_fault_handler},  /* MemManage */
    [5] = {.handler = tk_fault_handler},  /* BusFault */
    [6] = {.handler = tk_fault_handler},  /* UsageFault */
    [11] = {.handler = tk_fault_handler}, /* SVCall */
    [12] = {.handler = tk_fault_handler}, /* DebugMonitor */
    [14] = {.handler = tk_fault_handler}, /* PendSV */
    [15] = {.handler = tk_fault_handler}, /* SysTick */
};

_Noreturn void tk_fault_handler(void)
{
    tk_armv7m_reset();
}

_Noreturn void tk_reset_handler(void)
{
    TK_SCB_VTOR = (uint32_t)(uintptr_t)vectors;
    TK_SCB_CPACR |= TK_SCB_CPACR_FPU_FULL;
    tk_barrier();
    /* The bounds are symbols of the linker script, all multiples of 4. volatile keeps the compiler from making calls to
     * memcpy and memset out of the loops: the library must not run before its data is there. */
    const volatile uint32_t *from = &tk_data_image;
    for (volatile uint32_t *to = &tk_data_start; to < &tk_data_end; to++, from++) {
        *to = *from;
    }
    for (volatile uint32_t *to = &tk_bss_start; to < &tk_bss_end; to++) {
        *to = 0;
    }
    (void)main();
    tk_armv7m_reset();
}
