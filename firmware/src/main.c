/* The firmware: serve the host for ever. */
#include "tk_hal.h"
#include "tk_server.h"

int main(void)
{
    tk_hal_init();
    tk_server_start();
    for (;;) {
        tk_server_poll();
    }
}
