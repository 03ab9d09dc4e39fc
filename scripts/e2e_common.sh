#!/usr/bin/env bash
# What the scripts that drive a running server share: sourced by them, and made to be used with `set -e`.
# The server is at $url. $work is a directory of the script's own, and goes with it; what else is to be
# taken down is in its function clean_up.
#
# shellcheck disable=SC2016  # the $names in single quotes are jq's

work=$(mktemp -d)
url='' step='' status='' statuses='' body='' request=''

clean_up() { :; }

end() {
    local result=$?
    trap - EXIT
    clean_up
    rm -rf -- "$work"
    exit "$result"
}
trap end EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# need PROGRAM…
need() {
    local program
    for program; do
        command -v "$program" >/dev/null || {
            echo "$0 needs $program" >&2
            exit 2
        }
    done
}

# Secrets go to curl in files, not on its command line, where `ps` would show them.
secret() { printf 'Authorization: Bearer %s\n' "$2" >"$work/key.$1"; }

# The same, for the key of a service.
service_secret() { printf 'X-Internal-Key: %s\n' "$2" >"$work/key.$1"; }

surprise() {
    {
        printf 'FAIL  %s\n' "$step"
        printf '      request   %s\n' "$request"
        printf '      expected  %s\n' "$1"
        printf '      got       %s\n' "$2"
        printf '      status    %s\n' "$status"
        printf '      body      %s\n' "${body:0:2000}"
    } >&2
    exit 1
}

begin() { step=$1; }
passed() { printf 'ok    %s\n' "$step${1:+: $1}"; }

# call KEY METHOD PATH [JSON] [CURL ARGUMENTS…]: KEY is a name given to `secret`, or - for none.
# Leaves the answer in $status, $body and $work/headers.
call() {
    local key=$1 method=$2 path=$3 json=${4-}
    shift $(($# < 4 ? $# : 4))
    local arguments=(-sS -m 30 -X "$method" -o "$work/body" -D "$work/headers" -w '%{http_code}' "$@")
    [[ $key == - ]] || arguments+=(-H @"$work/key.$key")
    [[ -z $json ]] || arguments+=(-H 'Content-Type: application/json' --data-binary "$json")
    request="$method $path${json:+ ${json:0:500}}"
    : >"$work/body"
    if ! status=$(curl "${arguments[@]}" "$url$path" 2>"$work/curl"); then
        body=''
        surprise "an answer" "$(<"$work/curl")"
    fi
    body=$(<"$work/body")
}

# at_once NUMBER KEY METHOD PATH JSON: as `call`, so often at the same time; their statuses are in $statuses,
# sorted, a line each.
at_once() {
    local number=$1 key=$2 method=$3 path=$4 json=$5 one pids=()
    request="$number times $method $path ${json:0:500}"
    rm -f -- "$work"/once.*
    for ((one = 0; one < number; one++)); do
        curl -sS -m 30 -X "$method" -o "$work/once.$one.body" -w '%{http_code}\n' -H @"$work/key.$key" \
            -H 'Content-Type: application/json' --data-binary "$json" "$url$path" >"$work/once.$one" &
        pids+=("$!")
    done
    wait "${pids[@]}" || surprise "answers" "none to one of them"
    # shellcheck disable=SC2034  # for those who source this
    statuses=$(sort -- "$work"/once.*[0-9])
}

# how_many STATUS NUMBER: of those that `at_once` left.
how_many() {
    local number
    number=$(grep -cx -- "$1" <<<"$statuses" || true)
    [[ $number == "$2" ]] || surprise "$2 times status $1" "$number of ${statuses//$'\n'/ }"
}

expect() { [[ $status == "$1" ]] || surprise "status $1" "status $status"; }

# that FILTER [JQ ARGUMENTS…]: the body is JSON for which FILTER is true.
that() {
    local filter=$1
    shift
    jq -e "$@" "$filter" <<<"$body" >/dev/null 2>&1 || surprise "$filter ${*:+with $*}" "a body for which it is not so"
}

# An error in the shape that all of them share; with its code, where the contract names one.
error() {
    expect "$1"
    that '(.error | type == "string" and length > 0) and (.message | type == "string" and length > 0)'
    [[ -z ${2-} ]] || that '.error == $code' --arg code "$2"
}

field() { jq -r "$1" <<<"$body"; }

header() { tr -d '\r' <"$work/headers" | sed -n "s/^$1: *//Ip" | tail -n 1; }

# header_is NAME PATTERN
header_is() {
    local value
    value=$(header "$1")
    [[ $value =~ ^($2)$ ]] || surprise "a header $1 that matches $2" "'$value'"
}
