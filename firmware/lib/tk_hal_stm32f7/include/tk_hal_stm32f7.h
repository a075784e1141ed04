/* What the STM32F7 port expects from the board file beside the defines of tk_stm32.h:
 *
 *   TK_PWR_OVERDRIVE   1: switch the regulator to over-drive, needed above 180 MHz; 0: do not
 */
#ifndef TK_HAL_STM32F7_H
#define TK_HAL_STM32F7_H

#include "tk_stm32.h"

#ifndef TK_PWR_OVERDRIVE
#error "a define is missing: compare [defines] of the board file with the list in tk_hal_stm32f7.h"
#endif

#endif
