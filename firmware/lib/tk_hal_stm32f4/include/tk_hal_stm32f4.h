/* What the STM32F4 port expects from the board file beside the defines of tk_stm32.h:
 *
 *   TK_PLL_R           divider of an output that the firmware does not use; must be valid, 2 .. 7
 */
#ifndef TK_HAL_STM32F4_H
#define TK_HAL_STM32F4_H

#include "tk_stm32.h"

#ifndef TK_PLL_R
#error "a define is missing: compare [defines] of the board file with the list in tk_hal_stm32f4.h"
#endif

#endif
