#!/usr/bin/env bash
# Walks a customer through everything that is bought: from Checkout over signed webhooks to refund and
# cancellation. Stops at the first surprise.
#
#   scripts/e2e_stripe.sh [BINARY]     target/release/spell-platform, or else target/debug/…
#
# It starts a server of its own on a fresh SQLite file, and scripts/stripe-stand-in for Stripe, on free
# ports, and takes both down. Beside `scripts/test --services`, what Stripe was sent is also held against
# its OpenAPI description.
#
# shellcheck disable=SC2016  # the $names in single quotes are jq's
set -euo pipefail

(($# <= 1)) || {
    echo "usage: scripts/e2e_stripe.sh [BINARY]" >&2
    exit 2
}
repository=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=scripts/e2e_common.sh
source "$repository/scripts/e2e_common.sh"
need curl jq openssl python3

binary=${1-$repository/target/release/spell-platform}
(($# == 1)) || [[ -x $binary ]] || binary=$repository/target/debug/spell-platform
[[ -x $binary ]] || {
    echo "scripts/e2e_stripe.sh: there is no $binary: build it first, by cargo build" >&2
    exit 2
}
binary=$(realpath -- "$binary")

# --- A server, and a Stripe for it -----------------------------------------------------------------

server_pid='' stripe_pid='' stripe_url=''

clean_up() {
    local pid
    for pid in "$server_pid" "$stripe_pid"; do
        [[ -n $pid ]] || continue
        # Not ours any more, so that the shell has nothing to say about how it ended.
        disown "$pid" 2>/dev/null || true
        kill -KILL "$pid" 2>/dev/null || true
    done
}

# The first line that a program prints into file $1.
first_line() {
    for _ in {1..100}; do
        if [[ -s $1 ]]; then
            head -n 1 "$1"
            return 0
        fi
        sleep 0.1
    done
    surprise "a line in $1" "nothing"
}

random() { openssl rand -hex 24; }

begin "Stripe's stand-in comes up"
webhook_secret=whsec_$(random)
"$repository/scripts/stripe-stand-in" --webhook-secret "$webhook_secret" \
    >"$work/stripe.out" 2>"$work/stripe.log" &
stripe_pid=$!
stripe_url=$(first_line "$work/stripe.out")
passed "$stripe_url"

begin "the server comes up"
port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
url=http://127.0.0.1:$port
admin_key=sk_live_$(random)
# Nothing of what is set here for other servers.
environment=(PATH="$PATH" HOST=127.0.0.1 PORT="$port" DATABASE_URL="sqlite:$work/e2e.db"
    BOOTSTRAP_API_KEY="$admin_key" STRIPE_SECRET_KEY="sk_test_$(random)" STRIPE_API_BASE="$stripe_url"
    STRIPE_WEBHOOK_SECRET="whsec_$(random),$webhook_secret")
(cd -- "$work" && exec env -i "${environment[@]}" "$binary" >"$work/server.out" 2>"$work/server.log") &
server_pid=$!
# Until it is ready: before that, it answers 503 while it sets up its database.
for _ in {1..300}; do
    curl -fsS -m 2 -o "$work/ready" "$url/ready" 2>"$work/curl" && break
    kill -0 "$server_pid" 2>/dev/null || surprise "a server" "$(tail -n 5 "$work/server.log")"
    sleep 0.1
done
call - GET /ready
expect 200
passed "$url, $binary"

# stripe METHOD PATH [JSON]: asks the stand-in for what no customer of ours can do.
stripe() {
    local url=$stripe_url
    call - "$@"
    expect 200
}

# happens PATH [JSON]: something at Stripe, whose events the server has to take.
happens() {
    stripe POST "/_/$1" "${2-}"
    that '(.events | length > 0) and all(.events[]; .status == 200 and (.answer | fromjson == {received: true}))'
}

stripe POST /_/configure "$(jq -cn --arg url "$url/webhooks/stripe" '{webhook_url: $url}')"

secret admin "$admin_key"
call admin POST /v1/accounts '{"name":"buyer","email":"buyer@shop.example"}'
expect 201
account=$(field .id)
call admin POST /v1/keys "$(jq -cn --arg account "$account" '{name: "buyer", account_id: $account}')"
expect 201
secret buyer "$(field .api_key)"

# plan CODE STATUS
plan() {
    call buyer GET /v1/billing
    expect 200
    that '.plan == $plan and .status == $status' --arg plan "$1" --arg status "$2"
}

credits() {
    call buyer GET /api/billing/balance
    expect 200
    that '. == {credits: $credits, allocated_tokens: {}}' --argjson credits "$1"
}

# operate ARGUMENT…: the operator's command line, on the server's database; what it says is in $said.
operate() {
    request="spell-platform $*"
    said=$(env -i "${environment[@]}" "$binary" "$@" 2>"$work/command.log") \
        || surprise "exit 0" "$(<"$work/command.log")"
}

# checkout JSON [CURL ARGUMENTS…]: $session is what it opened.
checkout() {
    call buyer POST /v1/billing/checkout "$@"
    expect 200
    that '(keys == ["session_id", "url"]) and (.url | startswith($stripe))' --arg stripe "$stripe_url"
    session=$(field .session_id)
}

# --- A plan ------------------------------------------------------------------------------------------

begin "who bought nothing is on the free plan"
plan free inactive
credits 0
call buyer POST /v1/billing/portal '{}'
error 404
passed "and has no portal: 404"

begin "the plan includes credits"
call admin PUT /v1/plans/pro '{"name":"Pro","price_cents":1000,"included_credits":250}'
expect 200
that '.included_credits == 250 and .price_cents == 1000'
passed

begin "checkout of a plan"
checkout '{"plan":"pro"}' -H 'Idempotency-Key: plan'
first=$session
checkout '{"plan":"pro"}' -H 'Idempotency-Key: plan'
[[ $session == "$first" ]] || surprise "the first session again" "$session"
stripe GET /_/requests
that '[.[] | select(.path == "/v1/checkout/sessions")] | length == 1
    and (.[0].headers["idempotency-key"] | type == "string" and length > 0)
    and .[0].form.mode == "subscription" and .[0].form.line_items[0].price_data.unit_amount == "1000"'
that '[.[] | select(.path == "/v1/customers")] | length == 1'
plan free inactive
passed "$session, asked for once; nothing is granted yet"

begin "it is paid, and Stripe tells us"
happens "sessions/$session/pay"
subscription=$(field .object.subscription)
invoice=$(field .object.invoice)
that '[.events[].type] == ["checkout.session.completed", "customer.subscription.created",
    "customer.subscription.updated", "invoice.paid"]'
plan pro active
that '(.current_period_end | type == "string") and (.stripe_customer_id | startswith("cus_"))'
credits 250
passed "plan pro, active, with its 250 credits"

begin "a second subscription beside it"
call buyer POST /v1/billing/checkout '{}'
error 409
passed 409

begin "the portal"
call buyer POST /v1/billing/portal '{}'
expect 200
that 'keys == ["url"] and (.url | startswith($stripe))' --arg stripe "$stripe_url"
passed

begin "a part of the plan's invoice is refunded while Stripe can't be asked what the money was for"
stripe POST /_/fail '{"status":500,"times":100,"path":"/v1/invoice_payments"}'
happens refund "{\"invoice\":\"$invoice\",\"amount\":400}"
refund=$(field '.events[0].id')
credits 250
operate webhooks list
[[ $(wc -l <<<"$said") == 1 && $said == *"$refund"*kept* ]] || surprise "a line for $refund" "$said"
stripe POST /_/recover
operate webhooks replay "$refund"
[[ $said == "$refund"$'\t'applied ]] || surprise "$refund applied" "$said"
credits 150
plan pro active
passed "kept, and replayed: 150 credits left"

begin "all of it is refunded"
happens refund "{\"invoice\":\"$invoice\"}"
credits 0
plan pro active
stripe GET /_/requests
that '[.[] | select(.path | startswith("/v1/invoice_payments?"))] | length > 1 and .[-1].status == 200'
passed "no credits left; the subscription goes on"

# --- Credits -----------------------------------------------------------------------------------------

begin "checkout of 1000 credits, paid"
checkout '{"credits":1000}'
credits 0
happens "sessions/$session/pay"
payment=$(field .object.payment_intent)
credits 1000
passed "1000 credits"

begin "every event again"
happens redeliver/all
that '.events | length == 7'
credits 1000
plan pro active
passed "nothing has changed"

begin "a cast that is paid from credits"
call admin PUT /v1/spells/metered '{"kind":"echo","price":{"flat_cents":5},"pay_from":"credits"}'
expect 201
call buyer POST /v1/cast '{"spell_name":"metered","payload":{}}'
expect 200
credits 995
passed "995 credits left"

begin "a part of the money is refunded"
happens refund "{\"payment_intent\":\"$payment\",\"amount\":400}"
credits 595
passed "595 credits left"

begin "the rest is disputed"
happens dispute "{\"payment_intent\":\"$payment\"}"
credits 0
call buyer POST /v1/cast '{"spell_name":"metered","payload":{}}'
error 402 insufficient_credits
passed "frozen: 402 insufficient_credits"

begin "the dispute is won"
happens dispute '{"close":"won"}'
credits 595
passed "595 credits again"

begin "what was spent, and is refunded then, is owed"
happens refund "{\"payment_intent\":\"$payment\"}"
credits 0
checkout '{"credits":100}'
happens "sessions/$session/pay"
credits 95
passed "and taken from the next purchase"

begin "a payment that takes days, and one that fails"
checkout '{"credits":200}'
happens "sessions/$session/pay?async=true"
credits 95
happens "sessions/$session/pay?async=true"
credits 295
checkout '{"credits":200}'
happens "sessions/$session/pay?async=fail"
happens "sessions/$session/pay?async=fail"
credits 295
checkout '{"credits":200}'
happens "sessions/$session/expire"
credits 295
passed "only what was paid is granted"

# --- What goes wrong ---------------------------------------------------------------------------------

begin "events that Stripe has not signed"
stripe GET /_/events
jq -j '.[0].body' <<<"$body" >"$work/event"
signed() { openssl dgst -sha256 -hmac "$1" -r <(printf '%s.' "$2" && cat "$work/event") | cut -d ' ' -f 1; }
now=$(date +%s)
old=$((now - 301))
for header in "t=$now,v1=$(signed whsec_forged "$now")" "t=$old,v1=$(signed "$webhook_secret" "$old")" \
    "t=$now" nonsense ''; do
    call - POST /webhooks/stripe '' --data-binary @"$work/event" ${header:+-H "Stripe-Signature: $header"}
    error 400
done
call - POST /webhooks/stripe '' --data-binary @"$work/event" \
    -H "Stripe-Signature: t=$now,v1=$(signed whsec_forged "$now"),v1=$(signed "$webhook_secret" "$now")"
expect 200
plan pro active
credits 295
passed "400; one good signature of two: 200"

begin "a payment that belongs to no purchase of ours"
price='line_items[0][price_data]'
sold="mode=payment&success_url=https://shop.example/&line_items[0][quantity]=1&${price}[product_data][name]=Else"
sold+="&${price}[currency]=usd&${price}[unit_amount]=1000"
stripe POST /v1/checkout/sessions '' --data "$sold" -H 'Authorization: Bearer sk_test_else' -H 'Idempotency-Key: else'
happens "sessions/$(field .id)/pay"
kept=$(field '.events[0].id')
credits 295
operate webhooks list
[[ $(wc -l <<<"$said") == 1 && $said == *"$kept"*kept* ]] || surprise "a line for $kept" "$said"
call admin GET /v1/webhooks
expect 200
that '[.data[] | [.id, .status]] == [[$kept, "kept"]]' --arg kept "$kept"
call admin POST "/v1/webhooks/$kept/replay"
expect 200
that '.status == "kept" and .attempts == 2'
passed "is kept for the operator, and stays so when it is replayed"

begin "Stripe fails"
stripe POST /_/fail '{"status":500,"times":100}'
call buyer POST /v1/billing/checkout '{"credits":100}'
error 502 stripe_error
call buyer POST /v1/cast '{"spell_name":"echo","payload":{}}'
expect 200
stripe POST /_/recover
checkout '{"credits":100}'
passed "502, casts go on, and so does checkout afterwards"

# --- The end -----------------------------------------------------------------------------------------

begin "the payment of a renewal fails, then it is paid"
sleep 1
happens "subscriptions/$subscription/fail_payment"
plan pro past_due
sleep 1
happens "subscriptions/$subscription/renew"
plan pro active
credits 545
passed "past_due, active; the new period brings its 250 credits"

begin "the subscription is canceled"
sleep 1
happens "subscriptions/$subscription/cancel"
plan free canceled
happens redeliver/all
plan free canceled
credits 545
checkout '{"plan":"pro"}'
passed "plan free, canceled; everything again changes nothing"

begin "what Stripe told is counted"
call - GET /metrics
expect 200
# counted TYPE RESULT NUMBER
counted() {
    grep "^stripe_webhook_total{" <<<"$body" | grep -F "type=\"$1\"" | grep -F "result=\"$2\"" | grep -q " $3\$" \
        || surprise "stripe_webhook_total of type $1 and result $2: $3" "no such line"
}
counted checkout.session.completed applied 5
counted checkout.session.completed kept 1
counted customer.subscription.deleted applied 1
counted charge.dispute.closed applied 1
counted charge.refunded kept 1
counted charge.refunded applied 3
counted invoice.paid duplicate 3
counted other bad_signature 5
passed

begin "the audit finds that Stripe has on its books what the server has"
audited=$(cd -- "$work" && env -i "${environment[@]}" "$binary" audit 2>"$work/audit.log") \
    || surprise "an audit that ends with 0" "$audited$(cat "$work/audit.log")"
[[ $(tail -n 1 <<<"$audited") == "Stripe since "*": no drift" ]] || surprise "no drift at Stripe" "$audited"
passed "$(tail -n 1 <<<"$audited")"

begin "what Stripe was sent is what it takes"
stripe GET /_/requests
if [[ -n ${TEST_STRIPE_TOOLS-} ]]; then
    problems=$("$repository/tests/stripe/check_requests.py" <<<"$body") || surprise "no problem" "$problems"
    passed "$problems"
else
    passed "not checked: TEST_STRIPE_TOOLS is not set"
fi

begin "the server stops"
kill -TERM "$server_pid"
result=0
wait "$server_pid" || result=$?
server_pid=''
((result == 0)) || surprise "exit 0" "exit $result: $(tail -n 5 "$work/server.log")"
! grep -qF -e "$webhook_secret" -e "$admin_key" "$work/server.log" || surprise "a log without secrets" "a secret"
passed

echo "all as the contract says"
