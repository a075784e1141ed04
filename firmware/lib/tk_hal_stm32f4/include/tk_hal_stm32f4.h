/* What the STM32F4 port expects from the board file: [defines] in boards/<board>.toml, which reach C through tk_board.h.
 *
 *   TK_HSE_HZ                 frequency on the HSE input
 *   TK_HSE_BYPASS             1: an external clock (on Nucleo boards the ST-LINK's 8 MHz); 0: a crystal
 *   TK_PLL_M, _N, _P, _Q      main PLL: VCO = HSE / M * N; core clock = VCO / P; P is 2, 4, 6 or 8; Q 2 .. 15 is unused
 *   TK_PLL_R                  divider of an output that the firmware does not use; must be valid, 2 .. 7
 *   TK_APB1_DIV, TK_APB2_DIV  bus dividers: 1, 2, 4, 8 or 16; the core runs undivided from AHB
 *   TK_PWR_VOS                voltage scale, the value of the VOS bits: 1 .. 3
 *   TK_FLASH_WAIT_STATES      for TK_CLOCK_HZ at 2.7 .. 3.6 V
 *   TK_UART_BASE              address of the USART that the host talks to
 *   TK_UART_ENABLE_ADDRESS    address of the RCC register with its clock enable bit, ...
 *   TK_UART_ENABLE_BIT        ... and the bit
 *   TK_UART_APB               1 or 2: the bus that clocks it
 *   TK_UART_GPIO_BASE         address of the GPIO port with both pins, ...
 *   TK_UART_GPIO_ENABLE_BIT   ... and its bit in RCC_AHB1ENR
 *   TK_UART_TX_PIN, _RX_PIN   0 .. 15
 *   TK_UART_TX_AF, _RX_AF     alternate function number, 0 .. 15
 *
 * TK_CLOCK_HZ and TK_BAUD come from the board's clock_hz and baud. The limits below are checked when this is compiled. */
#ifndef TK_HAL_STM32F4_H
#define TK_HAL_STM32F4_H

#include "tk_board.h"

#if !defined(TK_HSE_HZ) || !defined(TK_HSE_BYPASS) || !defined(TK_PLL_M) || \
    !defined(TK_PLL_N) || !defined(TK_PLL_P) || !defined(TK_PLL_Q) || \
    !defined(TK_PLL_R) || !defined(TK_APB1_DIV) || !defined(TK_APB2_DIV) || \
    !defined(TK_PWR_VOS) || !defined(TK_FLASH_WAIT_STATES) || !defined(TK_UART_BASE) || \
    !defined(TK_UART_ENABLE_ADDRESS) || !defined(TK_UART_ENABLE_BIT) || !defined(TK_UART_APB) || \
    !defined(TK_UART_GPIO_BASE) || !defined(TK_UART_GPIO_ENABLE_BIT) || !defined(TK_UART_TX_PIN) || \
    !defined(TK_UART_TX_AF) || !defined(TK_UART_RX_PIN) || !defined(TK_UART_RX_AF)
#error "a define is missing: compare [defines] of the board file with the list in tk_hal_stm32f4.h"
#endif

#define TK_VCO_HZ (TK_HSE_HZ / TK_PLL_M * TK_PLL_N)
#define TK_UART_CLOCK_HZ (TK_CLOCK_HZ / (TK_UART_APB == 1 ? TK_APB1_DIV : TK_APB2_DIV))

_Static_assert(TK_VCO_HZ / TK_PLL_P == TK_CLOCK_HZ, "HSE / M * N / P is not clock_hz");
_Static_assert(TK_HSE_HZ / TK_PLL_M >= 1000000 && TK_HSE_HZ / TK_PLL_M <= 2000000, "the PLL input must be 1 to 2 MHz");
_Static_assert(TK_VCO_HZ >= 100000000 && TK_VCO_HZ <= 432000000, "the VCO must run at 100 to 432 MHz");
_Static_assert(TK_PLL_P == 2 || TK_PLL_P == 4 || TK_PLL_P == 6 || TK_PLL_P == 8, "PLL_P is 2, 4, 6 or 8");
_Static_assert(TK_UART_CLOCK_HZ / TK_BAUD >= 16, "the UART's clock is too slow for the baud rate");

#endif
