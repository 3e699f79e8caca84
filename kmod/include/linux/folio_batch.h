/* SPDX-License-Identifier: GPL-2.0-only */
/* What folio_batch.h was called before; found only where the kernel lacks it. */
#include <linux/pagevec.h>
