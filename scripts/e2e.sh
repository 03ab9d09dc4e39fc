#!/usr/bin/env bash
# Drives a running server through its contract with curl and jq, and stops at the first surprise.
#
#   scripts/e2e.sh URL KEY         such as: scripts/e2e.sh http://127.0.0.1:8080 "$KEY"
#
# KEY is an admin's key or one without scopes. The script makes keys of its own in KEY's account,
# sets limits on those alone, and removes what it made, so it may run against a live system; the
# account is charged for six casts or holds at the price of one `echo`. (Other budgets that cover
# them must have room for that.)
#
# shellcheck disable=SC2016  # the $names in single quotes are jq's
set -euo pipefail

(($# == 2)) || {
    echo "usage: scripts/e2e.sh URL KEY" >&2
    exit 2
}
# shellcheck source=scripts/e2e_common.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/e2e_common.sh"
need curl jq

url=${1%/}
keys=()

clean_up() {
    for id in "${keys[@]}"; do
        for path in "budgets?key_id=$id" "keys/$id"; do
            curl -sS -o "$work/removed" -m 10 -X DELETE -H @"$work/key.main" "$url/v1/$path" || true
        done
    done
}

rate_headers() {
    header_is RateLimit-Limit "$1"
    header_is RateLimit-Remaining '[0-9]+'
    header_is RateLimit-Reset '[0-9]+'
}

secret main "$2"
secret wrong "sk_live_$(printf '0%.0s' {1..43})"
run_id="e2e-$$-$RANDOM$RANDOM"

# --- The process, its metrics, its doors ---------------------------------------------------------

begin "health"
for path in /healthz /health; do
    call - GET "$path"
    expect 200
    that '.status == "ok" and (.version | type == "string")'
done
version=$(field .version)
call - GET /ready
expect 200
passed "version $version"

begin "request ids"
call - GET /healthz '' -H "X-Request-Id: $run_id"
header_is X-Request-Id "$run_id"
call - GET /healthz
header_is X-Request-Id '.+'
passed

begin "metrics"
call - GET /metrics
expect 200
for metric in spell_cast_total rate_limited_total budget_block_total stripe_webhook_total \
    spell_cast_duration_seconds db_pool_in_use redis_errors_total; do
    grep -q "^# TYPE $metric " <<<"$body" || surprise "the metric $metric" "none of that name"
done
if command -v promtool >/dev/null; then
    promtool check metrics <"$work/body" >"$work/promtool" 2>&1 \
        || surprise "text that promtool accepts" "$(<"$work/promtool")"
    passed "promtool agrees"
else
    passed "promtool is not here to ask"
fi

begin "no key and a wrong key"
call - POST /v1/cast '{"spell_name":"echo","payload":1}'
error 401
call wrong GET /v1/keys
error 401
passed 401

# --- Keys ----------------------------------------------------------------------------------------

# make_key NAME PER_MINUTE: leaves the new key's id in $id.
make_key() {
    call main POST /v1/keys "$(jq -cn --arg name "$run_id-$1" --argjson rate "$2" \
        '{name: $name, rate_limit_per_minute: $rate}')"
    expect 201
    id=$(field '.id // empty')
    keys+=("$id")
    that '(.id | type == "string") and (.api_key | startswith("sk_live_"))
        and (.prefix as $p | ($p | length) > 0 and (.api_key | startswith($p))) and .name == $name' \
        --arg name "$run_id-$1"
    secret "$1" "$(field .api_key)"
}

begin "a key is made, and its secret is shown once"
make_key caster 30
key=$id
made=$(field .api_key)
call main GET '/v1/keys?limit=1000'
expect 200
that 'has("next_cursor") and any(.data[]; .id == $id)' --arg id "$key"
! grep -qF -- "$made" <<<"$body" || surprise "a list without secrets" "the secret"
passed

# --- What is refused before it runs ----------------------------------------------------------------

begin "an unknown spell"
call caster POST /v1/cast "{\"spell_name\":\"$run_id\",\"payload\":{}}"
error 404
passed 404

begin "an unknown field, and what is not JSON"
call caster POST /v1/cast '{"spell_name":"echo","payload":{},"paylaod":{}}'
error 400
grep -q paylaod <<<"$body" || surprise "an answer that names the field" "one that does not"
call caster POST /v1/cast '{"spell_name":'
error 400
call caster POST /v1/cast '' -H 'Content-Type: text/plain' --data-binary '{"spell_name":"echo","payload":{}}'
error 415
passed "400, 400, 415"

# --- Casts without a limit -------------------------------------------------------------------------

begin "the spell echo"
call main GET /v1/spells
expect 200
that 'any(.data[]; .name == "echo")'
passed

begin "no budget yet"
call main GET "/v1/budgets?key_id=$key"
error 404 budget_not_found
passed 404

payload='{"n":[1,2.50,null,true],"text":"spéll ✓"}'
cast="{\"spell_name\":\"echo\",\"payload\":$payload}"

begin "the first cast"
call caster POST /v1/cast "$cast" -H "Idempotency-Key: $run_id"
expect 200
that '(.id | type == "string") and .status == "COMPLETED" and .result == $payload and .error_code == null
    and (.created_at | test("^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9:.]+Z$"))
    and (.cost_cents | type == "number" and . == floor and . >= 0)' --argjson payload "$payload"
rate_headers 30
cost=$(field .cost_cents)
first=$body
first_id=$(field .id)
((cost > 0)) || surprise "a price of at least a cent, so that a limit can be reached" "a cost of $cost"
passed "cost_cents is $cost"

# spent CALLS CENTS RESERVED: what the key's usage must say, for this month.
spent() {
    call main GET "/v1/budgets/usage?key_id=$key"
    expect 200
    that '.total_calls == $calls and .total_cost_cents == $spent and .reserved_cents == $reserved
        and .period == "monthly" and (.user_id | type == "string")
        and (.window_start < .window_end)' \
        --argjson calls "$1" --argjson spent "$2" --argjson reserved "$3"
}

begin "the same Idempotency-Key again: the same answer, charged once"
call caster POST /v1/cast "$cast" -H "Idempotency-Key: $run_id"
expect 200
that '. == $first' --argjson first "$first"
call caster POST /v1/cast '{"spell_name":"echo","payload":"another"}' -H "Idempotency-Key: $run_id"
error 422
spent 1 "$cost" 0
that '.soft_limit_cents == null and .hard_limit_cents == null and .remaining_cents == null'
passed

begin "the cast is in the books"
call caster GET "/v1/casts/$first_id"
expect 200
that '.id == $id and .status == "COMPLETED" and .cost_cents == $cost' --arg id "$first_id" --argjson cost "$cost"
call caster GET "/v1/casts?key_id=$key&status=COMPLETED&spell=echo"
expect 200
that '[.data[].id] == [$id]' --arg id "$first_id"
passed

# --- A budget, up to its limit -----------------------------------------------------------------------

# limits SOFT HARD: a monthly budget as JSON.
limits() { printf '{"period":"monthly","soft_limit_cents":%d,"hard_limit_cents":%d}' "$1" "$2"; }

begin "a budget of three casts"
call main POST "/v1/budgets?key_id=$key" "$(limits $((2 * cost)) $((3 * cost)))"
expect 201
that '.period == "monthly" and .soft_limit_cents == $soft and .hard_limit_cents == $hard' \
    --argjson soft $((2 * cost)) --argjson hard $((3 * cost))
call main POST "/v1/budgets?key_id=$key" "$(limits $((2 * cost)) $((3 * cost)))"
expect 200
passed "201, and 200 when replaced"

begin "a soft limit over the hard one"
call main PUT "/v1/budgets?key_id=$key" "$(limits $((4 * cost)) "$cost")"
error 400
call main GET "/v1/budgets?key_id=$key"
expect 200
that '.hard_limit_cents == $hard' --argjson hard $((3 * cost))
passed "400, and the old budget stands"

begin "casts up to the limit"
for _ in 2 3; do
    call caster POST /v1/cast "$cast"
    expect 200
    rate_headers 30
done
passed "3, the first of which was cast before the budget was made"

# refused RESERVED SPENT HARD
refused() {
    error 402 budget_exceeded
    that '.period == "monthly" and .scope == $scope and .hard_limit_cents == $hard and .spent_cents == $spent
        and .reserved_cents == $reserved and .requested_cents == $cost and (.resets_at | type == "string")' \
        --arg scope "key:$key" --argjson reserved "$1" --argjson spent "$2" --argjson hard "$3" --argjson cost "$cost"
}

begin "one more"
call caster POST /v1/cast "$cast"
refused 0 $((3 * cost)) $((3 * cost))
rate_headers 30
passed "402 budget_exceeded"

begin "usage at the limit"
spent 3 $((3 * cost)) 0
that '.remaining_cents == 0 and .soft_limit_cents == $soft and .hard_limit_cents == $hard' \
    --argjson soft $((2 * cost)) --argjson hard $((3 * cost))
passed

begin "the limit is raised by two casts, and the next one goes through"
call main PUT "/v1/budgets?key_id=$key" "$(limits $((2 * cost)) $((5 * cost)))"
expect 200
call caster POST /v1/cast "$cast"
expect 200
spent 4 $((4 * cost)) 0
that '.remaining_cents == $left' --argjson left "$cost"
passed

# --- Holds -------------------------------------------------------------------------------------------

begin "a hold takes what is left"
call caster POST /v1/holds "{\"amount_cents\":$cost,\"ttl_seconds\":120}"
expect 201
that '(.id | type == "string") and .amount_cents == $cost and (.expires_at | type == "string")' --argjson cost "$cost"
rate_headers 30
hold=$(field .id)
spent 4 $((4 * cost)) "$cost"
that '.remaining_cents == 0'
call caster POST /v1/cast "$cast"
refused "$cost" $((4 * cost)) $((5 * cost))
passed "402 meanwhile"

begin "the hold is settled, once"
call caster POST "/v1/holds/$hold/settle" "{\"amount_cents\":$cost}"
expect 200
settled=$body
call caster POST "/v1/holds/$hold/settle" "{\"amount_cents\":$cost}"
expect 200
that '. == $settled' --argjson settled "$settled"
call caster DELETE "/v1/holds/$hold"
error 409
spent 5 $((5 * cost)) 0
passed

begin "a hold that is given back"
call main PUT "/v1/budgets?key_id=$key" "$(limits $((2 * cost)) $((6 * cost)))"
expect 200
call caster POST /v1/holds "{\"amount_cents\":$cost}"
expect 201
hold=$(field .id)
call caster DELETE "/v1/holds/$hold"
expect 204
spent 5 $((5 * cost)) 0
that '.remaining_cents == $left' --argjson left "$cost"
passed

begin "usage by key"
call main GET '/v1/usage?by=key'
expect 200
that 'any(.data[]; .key_id == $key and .calls == 5 and .cost_cents == $spent and (.cost_usd | type == "string"))' \
    --arg key "$key" --argjson spent $((5 * cost))
passed

# --- The rate, and which limit speaks first --------------------------------------------------------

begin "over the rate"
make_key hasty 1
hasty=$id
call hasty POST /v1/cast "$cast"
expect 200
rate_headers 1
call hasty POST /v1/cast "$cast"
error 429 rate_limited
that '.retry_after | type == "number" and . >= 1'
header_is Retry-After "$(field .retry_after)"
rate_headers 1
passed 429

begin "over both limits"
call main PUT "/v1/budgets?key_id=$hasty" '{"period":"monthly","hard_limit_cents":0}'
expect 200
call hasty POST /v1/cast "$cast"
error 402 budget_exceeded
passed "402, the hard limit comes first"

# --- Cleaning up is part of the contract -------------------------------------------------------------

begin "the budgets are deleted"
for id in "$key" "$hasty"; do
    call main DELETE "/v1/budgets?key_id=$id"
    expect 204
    call main DELETE "/v1/budgets?key_id=$id"
    error 404 budget_not_found
done
passed

begin "the keys are revoked"
for id in "$key" "$hasty"; do
    call main DELETE "/v1/keys/$id"
    expect 204
done
keys=()
sleep 1
call caster POST /v1/cast "$cast"
error 401
passed 401

echo "all as the contract says"
