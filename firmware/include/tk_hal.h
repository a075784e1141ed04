/* The whole port to a board, on one page. One implementation a family: lib/tk_hal_<family>.
 *
 * All functions are called from the main loop only, never from an interrupt. The firmware uses no interrupts: input is
 * polled, and the host sends the next frame only after the answer to the last one, so no byte can be overrun.
 */
#ifndef TK_HAL_H
#define TK_HAL_H

#include <stddef.h>
#include <stdint.h>

/* Set the core clock to TK_CLOCK_HZ, enable caches, FPU and cycle counter, open the UART at TK_BAUD.
 * Called once, before everything else. Blocks until the clocks are stable. */
void tk_hal_init(void);

/* Copy at most `max` received bytes to `data`; return how many (0: none waiting). Never blocks. */
size_t tk_hal_read(uint8_t *data, size_t max);

/* Send `size` bytes. Blocks until the last one has been handed to the UART. */
void tk_hal_write(const uint8_t *data, size_t size);

/* Block until every byte written has left the wire. */
void tk_hal_flush(void);

/* Cycles of the core clock since tk_hal_init, modulo 2^32 (DWT CYCCNT). Never blocks.
 * Emulators may count retired instructions here instead; the host knows which. */
uint32_t tk_hal_cycles(void);

/* Restart the firmware as after power-up. Does not return. */
_Noreturn void tk_hal_reset(void);

#endif
