# SPDX-License-Identifier: GPL-2.0-only
#
# gnuplot -c bench/plot.gp RAW PNG: plot cost over size, from the measurements of bench/run

raw = ARG1
set terminal pngcairo size 1200, 420 font 'DejaVu Sans,10'
set output ARG2
set multiplot layout 1, 3

set logscale xy
set xtics nomirror
set ytics nomirror
set border 3
set grid
set key left top reverse Left samplen 2
set yrange [1e3:2e9]
set format y '10^{%T}'
set ylabel 'guest instructions'

# the measurements of one driver in rows that begin with "row-", as pairs of size and cost
of(driver, row, kind) = sprintf("< awk '$1 == \"%s\" && sub(\"^%s-\", \"\", $3) && $4 == \"%s\" { print $3, $5 }' %s", \
	driver, row, kind, raw)

set xrange [2048:8e9]
set xtics ('4K' 4096, '64K' 65536, '1M' 1048576, '16M' 16777216, '256M' 268435456, '1G' 1073741824)
set title 'creation and close, over size'
plot of('mainline', 'size-create-memfd', '4K') title 'mainline, memfd, 4K pages' with linespoints lc 7 pt 7 ps 0.6, \
     of('ours', 'size-create-memfd', '4K') title 'memfd, 4K pages' with linespoints lc 6 pt 7 ps 0.6, \
     of('ours', 'size-create-iovec', '4K') title 'own memory, 4K pages' with linespoints lc 2 pt 7 ps 0.6, \
     of('mainline', 'size-create-memfd', '2M') title 'mainline, memfd, 2M pages' with linespoints lc 7 pt 4 ps 0.8 dt 2, \
     of('ours', 'size-create-memfd', '2M') title 'memfd, 2M pages' with linespoints lc 6 pt 4 ps 0.8 dt 2, \
     of('ours', 'size-create-iovec', '2M') title 'own memory, 2M pages' with linespoints lc 2 pt 4 ps 0.8 dt 2

set title 'attach, map, unmap, detach by an importer, over size'
unset ylabel
plot of('mainline', 'size-import-memfd', '4K') title 'mainline, memfd, 4K pages' with linespoints lc 7 pt 7 ps 0.6, \
     of('ours', 'size-import-memfd', '4K') title 'memfd, 4K pages' with linespoints lc 6 pt 7 ps 0.6, \
     of('ours', 'size-import-iovec', '4K') title 'own memory, 4K pages' with linespoints lc 2 pt 7 ps 0.6, \
     of('mainline', 'size-import-memfd', '2M') title 'mainline, memfd, 2M pages' with linespoints lc 7 pt 4 ps 0.8 dt 2, \
     of('ours', 'size-import-memfd', '2M') title 'memfd, 2M pages' with linespoints lc 6 pt 4 ps 0.8 dt 2, \
     of('ours', 'size-import-iovec', '2M') title 'own memory, 2M pages' with linespoints lc 2 pt 4 ps 0.8 dt 2

set title 'creation and close, over number of 4K pieces'
set xrange [0.7:1e5]
set xtics ('1' 1, '16' 16, '256' 256, '4,096' 4096, '65,536' 65536)
plot of('mainline', 'pieces-memfd', '4K') title 'mainline, memfd' with linespoints lc 7 pt 7 ps 0.6, \
     of('ours', 'pieces-memfd', '4K') title 'memfd' with linespoints lc 6 pt 7 ps 0.6, \
     of('ours', 'pieces-iovec', '4K') title 'own memory' with linespoints lc 2 pt 7 ps 0.6
