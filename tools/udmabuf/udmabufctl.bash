# SPDX-License-Identifier: GPL-2.0-only
# shellcheck shell=bash
# bash completion for udmabufctl. Takes the commands and options from udmabufctl's help.

_udmabufctl()
{
	local word=${COMP_WORDS[COMP_CWORD]} last=${COMP_WORDS[COMP_CWORD - 1]}
	local command=${COMP_WORDS[1]} commands

	commands=$(udmabufctl help 2>/dev/null | sed -n 's/^  \([a-z]*\) .*/\1/p')
	if [ "$COMP_CWORD" = 1 ]; then
		mapfile -t COMPREPLY < <(compgen -W "$commands help --help --version" -- "$word")
	elif [ "$command" = help ]; then
		mapfile -t COMPREPLY < <(compgen -W "$commands" -- "$word")
	elif [[ $word = -* ]]; then
		mapfile -t COMPREPLY < <(compgen -W "$(udmabufctl help "$command" 2>/dev/null |
			sed -n 's/^ .* \(--[a-z]*\).*/\1/p') --help" -- "$word")
	elif [[ $last = -f || $last = --file || $command = send || $COMP_CWORD$command = 2receive ]]; then
		mapfile -t COMPREPLY < <(compgen -f -- "$word")
	elif [[ $command = run || $command = receive ]]; then
		mapfile -t COMPREPLY < <(compgen -c -- "$word")
	fi
}

complete -o default -F _udmabufctl udmabufctl
