#!/usr/bin/env bash
# Walks users of another service through the quotas of a running server: what their plans allow is debited and
# credited by that service. Stops at the first surprise.
#
#   SERVICE_TOKEN=… scripts/e2e_quota.sh URL KEY    such as: scripts/e2e_quota.sh http://127.0.0.1:8080 "$KEY"
#
# KEY is an admin's key, and SERVICE_TOKEN one of the server's. PAYMENT_KEY may name a file with the private key
# to whose public half the server's PAYMENT_WEBHOOK_PUBLIC_KEY is set; without it no order is signed. The script
# makes users and a plan of its own, which stay there, so it is meant for a server to try things on, with the
# plans of the start.
#
# shellcheck disable=SC2016  # the $names in single quotes are jq's
set -euo pipefail

if (($# != 2)) || [[ -z ${SERVICE_TOKEN-} ]]; then
    echo "usage: SERVICE_TOKEN=… [PAYMENT_KEY=FILE] scripts/e2e_quota.sh URL KEY" >&2
    exit 2
fi
# shellcheck source=scripts/e2e_common.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/e2e_common.sh"
need curl jq openssl

url=${1%/}
api=/internal/billing
run_id="e2e-$$-$RANDOM$RANDOM"

secret admin "$2"
service_secret service "$SERVICE_TOKEN"
service_secret wrong "not $SERVICE_TOKEN"

# has USER CHAT TPL PLAN: what is left to the user.
has() {
    call service GET "$api/quota/check/$run_id-$1"
    expect 200
    that 'keys == ["plan_code", "remain_chat", "remain_tpl", "resets_at"] and .remain_chat == $chat
        and .remain_tpl == $tpl and .plan_code == $plan' --argjson chat "$2" --argjson tpl "$3" --arg plan "$4"
}

# debit USER ACTION UNITS REF
debit() {
    jq -cn --arg user "$run_id-$1" --arg action "$2" --argjson units "$3" --arg ref "$run_id-$4" \
        '{user_id: $user, $action, $units, $ref}'
}

# credit USER PLAN CHAT TPL ORDER
credit() {
    jq -cn --arg user "$run_id-$1" --arg plan "$2" --argjson chat "$3" --argjson tpl "$4" --arg order "$run_id-$5" \
        '{order_id: $order, user_id: $user, plan_code: $plan, units_chat: $chat, units_tpl: $tpl}'
}

# left CHAT TPL PLAN: what a debit or a credit answers.
left() {
    expect 200
    that '. == {success: true, remain_chat: $chat, remain_tpl: $tpl, plan_code: $plan}' \
        --argjson chat "$1" --argjson tpl "$2" --arg plan "$3"
}

# --- Who may come in -------------------------------------------------------------------------------

begin "without the service key, with a wrong one and with an admin's"
for key in - wrong admin; do
    call $key GET "$api/quota/check/$run_id-ann"
    error 401 unauthorized
    call $key POST $api/quota/debit "$(debit ann chat_tokens 1 r0)"
    error 401 unauthorized
    call $key POST $api/quota/credit "$(credit ann free 1 1 o0)"
    error 401 unauthorized
done
passed 401

# --- Debits ------------------------------------------------------------------------------------------

begin "a user who was never seen"
has ann 100 20 free
that '.resets_at | test("^[0-9]{4}-[0-9]{2}-01T00:00:00(\\.0+)?Z$") and . > (now | todate)'
resets_at=$(field .resets_at)
passed "100 and 20 on the plan free, until $resets_at"

begin "46 of chat and 1 of a template"
call service POST $api/quota/debit "$(debit ann chat_tokens 46 r1)"
left 54 20 free
call service POST $api/quota/debit "$(debit ann tpl_run 1 r2)"
left 54 19 free
has ann 54 19 free
passed "54 and 19 are left"

begin "the same ref again"
call service POST $api/quota/debit "$(debit ann chat_tokens 46 r1)" -H 'Content-Type: text/plain'
left 54 20 free
for body in "$(debit ann chat_tokens 47 r1)" "$(debit ann tpl_run 46 r1)" "$(debit bob chat_tokens 46 r1)"; do
    call service POST $api/quota/debit "$body"
    error 409 reference_reused
done
has ann 54 19 free
has bob 100 20 free
passed "the first answer; with other content 409"

begin "more than is left"
call service POST $api/quota/debit "$(debit ann chat_tokens 55 r3)"
error 402 quota_exceeded
that '.requested == 55 and .remaining == 54 and .action == "chat_tokens" and .resets_at == $at' --arg at "$resets_at"
has ann 54 19 free
passed "402, nothing taken"

begin "what is not as it should be"
for body in "$(debit ann chat 1 r4)" "$(debit ann chat_tokens 0 r4)" "$(debit ann chat_tokens -1 r4)" \
    "$(debit ann chat_tokens 1.5 r4)" "$(debit ann chat_tokens 1 r4 | jq -c '.ref = ""')" \
    "$(debit ann chat_tokens 1 r4 | jq -c '. + {unit: 1}')" '[]' '{'; do
    call service POST $api/quota/debit "$body"
    error 400 invalid_request
done
for body in "$(credit ann gold 1 1 o4)" "$(credit ann free -1 1 o4)" "$(credit ann free 1 0.5 o4)" '{}'; do
    call service POST $api/quota/credit "$body"
    error 400 invalid_request
done
has ann 54 19 free
passed 400

# --- Credits -----------------------------------------------------------------------------------------

begin "an order of the plan pro_month"
call service POST $api/quota/credit "$(credit ann pro_month 500 10 o1)"
left 10500 210 pro_month
call service POST $api/quota/credit "$(credit ann pro_month 500 10 o1)"
left 10500 210 pro_month
call service POST $api/quota/credit "$(credit ann pro_month 501 10 o1)"
error 409 reference_reused
call service POST $api/quota/credit "$(credit ann pro_month 46 0 r1)"
error 409 reference_reused
call service POST $api/quota/debit "$(debit ann chat_tokens 500 o1)"
error 409 reference_reused
has ann 10500 210 pro_month
passed "its units at once, and once"

begin "twelve equal orders at once"
at_once 12 service POST $api/quota/credit "$(credit ann pro_month 0 5 o2)"
how_many 200 12
has ann 10500 215 pro_month
passed "one is credited"

begin "twelve equal debits at once"
at_once 12 service POST $api/quota/debit "$(debit ann tpl_run 15 r5)"
how_many 200 12
has ann 10500 200 pro_month
passed "one is debited"

begin "receipts"
call service GET "$api/quota/receipts/$run_id-ann"
expect 200
that '[.data[] | [.order_id, .plan_code, .units_chat, .units_tpl]]
    == [[$run + "-o2", "pro_month", 0, 5], [$run + "-o1", "pro_month", 500, 10]]' --arg run "$run_id"
passed

# --- Plans -------------------------------------------------------------------------------------------

begin "a plan of one's own"
plan=$(jq -cn --arg code "$run_id" '{$code, name: "E2E", period: "daily", limits: {chat_tokens: 3, tpl_run: 0},
    price_cents: 100, currency: "usd"}')
call service POST $api/plans "$plan"
expect 201
call admin POST $api/plans "$plan"
error 409 plan_exists
call service POST $api/quota/credit "$(credit bob "$run_id" 2 0 o3)"
left 5 0 "$run_id"
call service POST $api/quota/debit "$(debit bob chat_tokens 6 r6)"
error 402 quota_exceeded
call service POST $api/quota/debit "$(debit bob chat_tokens 4 r6)"
left 1 0 "$run_id"
passed "daily, with what was credited on top"

# --- Orders that are paid ----------------------------------------------------------------------------

# paid USER ORDER AMOUNT
paid() {
    credit "$1" pro_month 50 3 "$2" | jq -c --argjson amount "$3" \
        '. + {$amount, currency: "usd", payment_status: "succeeded", customer: {any: "thing"}}'
}

# signed KEY-FILE BODY: in base64.
signed() { openssl dgst -sha256 -sign "$1" <(printf %s "$2") | openssl base64 -A; }

begin "a paid order from the service itself"
call service POST $api/webhook/payment "$(paid cyd o5 9.90)"
left 10050 203 pro_month
call service POST $api/webhook/payment "$(paid cyd o5 9.90)"
left 10050 203 pro_month
call wrong POST $api/webhook/payment "$(paid cyd o6 9.90)"
error 401
call - POST $api/webhook/payment "$(paid cyd o6 9.90)"
error 401
passed "once"

begin "a paid order that is signed"
if [[ -n ${PAYMENT_KEY-} ]]; then
    order=$(paid cyd o6 9.90)
    call - POST $api/webhook/payment "$order" -H "X-Signature: $(signed "$PAYMENT_KEY" "$order")"
    left 10100 206 pro_month
    call - POST $api/webhook/payment "$(paid cyd o7 9.90)" -H "X-Signature: $(signed "$PAYMENT_KEY" "$order")"
    error 400 invalid_signature
    order=$(paid cyd o7 9.90 | jq -c '.payment_status = "failed"')
    call - POST $api/webhook/payment "$order" -H "X-Signature: $(signed "$PAYMENT_KEY" "$order")"
    error 400 invalid_request
    call admin GET "$api/dead-letters?limit=1000"
    expect 200
    that 'any(.data[]; .reason | contains("signature")) and any(.data[]; .reason | contains("payment_status"))'
    has cyd 10100 206 pro_month
    passed "what is not, or was not paid: 400, kept as a dead letter"
else
    passed "not checked: PAYMENT_KEY is not set"
fi

# --- The end -----------------------------------------------------------------------------------------

begin "who is suspended is debited nothing"
call admin GET '/v1/accounts?limit=1000'
expect 200
account=$(field '.data[] | select(.user_id == "'"$run_id-ann"'") | .id')
call admin PATCH "/v1/accounts/$account" '{"suspended":true}'
expect 200
call service POST $api/quota/debit "$(debit ann chat_tokens 1 r7)"
error 403 account_suspended
call service POST $api/quota/debit "$(debit ann chat_tokens 46 r1)"
left 54 20 free
passed "403; what was done is still told"

begin "metrics"
call - GET /metrics
expect 200
for metric in 'billing_deduct_total{result="ok"}' 'billing_deduct_total{result="fail"}' billing_credit_total \
    'billing_quota_remaining{type="chat",user_id=' 'billing_quota_remaining{type="template",user_id='; do
    grep -qF -- "$metric" <<<"$body" || surprise "the metric $metric" "none of that name"
done
if command -v promtool >/dev/null; then
    promtool check metrics <"$work/body" >"$work/promtool" 2>&1 \
        || surprise "text that promtool accepts" "$(<"$work/promtool")"
fi
passed

echo "all as the contract says"
