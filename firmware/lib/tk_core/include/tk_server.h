/* The command loop: answers the host as docs/spec-protocol.md says, over tk_hal.h and tk_model.h. */
#ifndef TK_SERVER_H
#define TK_SERVER_H

#include <stdint.h>

/* Announce the firmware: the boot line and READY. Called once, after tk_hal_init. Blocks until both are sent. */
void tk_server_start(void);

/* Take what the UART has received and answer every whole request in it. Called for ever, from the main loop only.
 * Returns at once when nothing came; blocks while ops run and while an answer is sent. */
void tk_server_poll(void);

/* Run ops first .. first + count - 1, which the model has, and note the cycles of each in tk_model_op_cycles.
 * Returns the cycles from before the first to after the last. Never inlined: emulators count what runs inside it. */
uint64_t tk_server_invoke(uint32_t first, uint32_t count);

#endif
