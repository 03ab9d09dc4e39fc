#!/usr/bin/env bash
# Walks users of another service through the wallet of a running server: credits that are added, allocated to
# models as tokens, and consumed. Stops at the first surprise.
#
#   JWT_SECRET=… scripts/e2e_wallet.sh URL KEY      such as: scripts/e2e_wallet.sh http://127.0.0.1:8080 "$KEY"
#
# KEY is an admin's key, and JWT_SECRET the server's: the users' tokens are signed with it. The script makes
# users and a model of its own, which stay there, so it is meant for a server to try things on, at the prices
# of the start.
#
# shellcheck disable=SC2016  # the $names in single quotes are jq's
set -euo pipefail

if (($# != 2)) || [[ -z ${JWT_SECRET-} ]]; then
    echo "usage: JWT_SECRET=… scripts/e2e_wallet.sh URL KEY" >&2
    exit 2
fi
# shellcheck source=scripts/e2e_common.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/e2e_common.sh"
need curl jq openssl

url=${1%/}
api=/api/billing
run_id="e2e-$$-$RANDOM$RANDOM"

base64url() { openssl base64 -A | tr '+/' '-_' | tr -d '='; }

# token USER SECONDS SECRET: for that user, for so long, signed by HS256 with that secret.
token() {
    local message
    message=$(printf '{"alg":"HS256","typ":"JWT"}' | base64url)
    message+=.$(jq -cjn --arg sub "$1" --argjson exp $(($(date +%s) + $2)) '{$sub, $exp}' | base64url)
    printf '%s.%s' "$message" "$(printf %s "$message" | openssl dgst -sha256 -hmac "$3" -binary | base64url)"
}

secret admin "$2"
secret ann "$(token "$run_id-ann" 600 "$JWT_SECRET")"
secret bob "$(token "$run_id-bob" 600 "$JWT_SECRET")"
secret expired "$(token "$run_id-ann" -120 "$JWT_SECRET")"
secret forged "$(token "$run_id-ann" 600 "not $JWT_SECRET")"

# refused STATUS CODE [MESSAGE]: an error in the shape of this part.
refused() {
    expect "$1"
    that 'keys == ["error"] and (.error | keys == ["code", "message"] and .code == $code)' --arg code "$2"
    [[ -z ${3-} ]] || that '.error.message == $message' --arg message "$3"
}

# holds USER CREDITS TOKENS: what the user's balance says.
holds() {
    call "$1" GET $api/balance
    expect 200
    that '. == {credits: $credits, allocated_tokens: $tokens}' --argjson credits "$2" --argjson tokens "$3"
}

# addition USER CREDITS TRANSACTION
addition() {
    jq -cn --arg user "$run_id-$1" --argjson credits "$2" --arg transaction "$run_id-$3" \
        '{user_id: $user, credits: $credits, purchase_record: {productId: "credits", transactionId: $transaction}}'
}

# allocation MODEL CREDITS…
allocation() {
    jq -cn '$ARGS.positional as $given | {allocations: [range(0; $given | length; 2)
        | {model_id: $given[.], credits: ($given[. + 1] | tonumber)}]}' --args "$@"
}

# consumption MODEL INPUT OUTPUT
consumption() {
    jq -cn --arg model "$1" --argjson input "$2" --argjson output "$3" \
        '{model_id: $model, input_tokens: $input, output_tokens: $output}'
}

# --- Who is there, and who is not ------------------------------------------------------------------

begin "health and prices are open"
call - GET $api/health
expect 200
that '. == {status: "ok", service: "billing"}'
call - GET $api/pricing
expect 200
that '.["gemini-2.0-flash"] == {price_per_m_token: 45, category: "quick"}
    and .["gemini-2.5-pro"] == {price_per_m_token: 1010, category: "think"}
    and .["gemini-2.5-flash"].price_per_m_token == 250 and .["gemini-2.0-pro"].price_per_m_token == 70
    and .["gpt-5-mini"].price_per_m_token == 200'
passed

begin "without credentials, and with bad ones"
for path in balance balance/category/quick transactions; do
    call - GET $api/$path
    refused 403 FORBIDDEN "Not authenticated"
    for bad in expired forged; do
        call $bad GET $api/$path
        refused 401 UNAUTHORIZED
    done
done
passed "403 Not authenticated, 401"

begin "a user who was never seen"
holds ann 0 '{}'
call ann POST $api/credits/allocate "$(allocation gemini-2.0-flash 100)"
refused 400 BAD_REQUEST "Insufficient credits. Required: 100P, balance: 0P"
call ann POST $api/credits/allocate "$(allocation gemini-2.0-flash 100)" -H 'Accept-Language: ja'
refused 400 BAD_REQUEST "クレジットが不足しています。必要: 100P, 残高: 0P"
holds ann 0 '{}'
passed "has nothing"

# --- Credits -----------------------------------------------------------------------------------------

begin "a user can't add credits by saying so"
for body in "$(addition ann 1000 t1)" "$(addition ann 1000 t1 | jq -c 'del(.user_id)')"; do
    call ann POST $api/credits/add "$body"
    refused 403 FORBIDDEN
done
holds ann 0 '{}'
passed 403

begin "an admin adds 1000 credits for the user"
call admin POST $api/credits/add "$(addition ann 1000 t1)"
expect 200
that '. == {success: true, new_balance: 1000}'
passed

begin "the same transaction again, for whomever"
for body in "$(addition ann 1000 t1)" "$(addition bob 1000 t1)" "$(addition ann 5 t1)"; do
    call admin POST $api/credits/add "$body"
    refused 409 CONFLICT
done
holds ann 1000 '{}'
holds bob 0 '{}'
passed "409, nothing added"

begin "twelve equal purchases at once"
at_once 12 admin POST $api/credits/add "$(addition bob 70 t2)"
how_many 200 1
how_many 409 11
holds bob 70 '{}'
passed "one is added"

# --- Tokens ------------------------------------------------------------------------------------------

begin "100 credits become 2,222,222 tokens"
call ann POST $api/credits/allocate "$(allocation gemini-2.0-flash 100)"
expect 200
that '. == {success: true, message: "Successfully allocated 100 credits to 1 model(s)"}'
holds ann 900 '{"gemini-2.0-flash": 2222222}'
call ann GET $api/balance/category/quick
expect 200
that '. == {category: "quick", total_tokens: 2222222}'
passed

begin "30,000 and 20,000 are consumed"
call ann POST $api/tokens/consume "$(consumption gemini-2.0-flash 30000 20000)"
expect 200
that '. == {success: true, remaining_tokens: 2172222}'
holds ann 900 '{"gemini-2.0-flash": 2172222}'
passed "2,172,222 are left"

begin "what can't be had changes nothing"
for body in "$(allocation gemini-2.0-flash 10 "$run_id" 10)" "$(allocation gpt-5-mini 0)" "$(allocation gpt-5-mini -1)" \
    "$(allocation gpt-5-mini 901)" "$(allocation gpt-5-mini 566)" "$(allocation gpt-5-mini 10 gemini-2.5-flash 800)" \
    "$(allocation gpt-5-mini 10 | jq -c '.allocations[0].credits = 5.5')" '{"allocations":[]}' \
    '{"allocation":[]}'; do
    call ann POST $api/credits/allocate "$body"
    refused 400 BAD_REQUEST
done
for body in "$(consumption gemini-2.0-flash 2172222 1)" "$(consumption gemini-2.0-flash -1 2)" \
    "$(consumption gemini-2.0-flash 0 0)" "$(consumption gpt-5-mini 1 0)" "$(consumption "$run_id" 1 0)"; do
    call ann POST $api/tokens/consume "$body"
    refused 400 BAD_REQUEST
done
holds ann 900 '{"gemini-2.0-flash": 2172222}'
passed "400, all of a list or none"

begin "a category is filled, and no further"
call ann POST $api/credits/allocate "$(allocation gpt-5-mini 565)"
expect 200
call ann POST $api/credits/allocate "$(allocation gpt-5-mini 1)"
refused 400 BAD_REQUEST "Over the capacity of quick tokens. Held: 4997222, asked for: 5000, capacity: 5000000"
call ann GET $api/balance/category/quick
expect 200
that '.total_tokens == 4997222'
passed "at 5,000,000 tokens"

begin "a price acts on the next allocation"
for price in 2000000 500000; do
    call admin PUT "$api/pricing/$run_id" "{\"price_per_m_token\":$price,\"category\":\"think\"}"
    that '.price_per_m_token == $price' --argjson price "$price"
    call ann POST $api/credits/allocate "$(allocation "$run_id" 4)"
    expect 200
done
call ann GET $api/balance
that '.credits == 327 and .allocated_tokens[$model] == 2 + 8' --arg model "$run_id"
call ann PUT "$api/pricing/$run_id" '{"price_per_m_token":1,"category":"think"}'
refused 403 FORBIDDEN
passed

begin "transactions, newest first, page by page"
call ann GET "$api/transactions?limit=4"
expect 200
that 'keys == ["next_cursor", "transactions"] and ([.transactions[].type] == ["allocation", "allocation", "allocation", "consumption"])
    and all(.transactions[]; keys == ["amount", "created_at", "id", "model_id", "type"] and (.id | . == floor))
    and .transactions[3].amount == 50000'
call ann GET "$api/transactions?limit=4&cursor=$(field .next_cursor)"
expect 200
that '[.transactions[] | [.type, .amount, .model_id]] == [["allocation", 100, "gemini-2.0-flash"], ["purchase", 1000, null]]
    and .next_cursor == null'
call bob GET $api/transactions
that '[.transactions[] | [.type, .amount]] == [["purchase", 70]]'
passed

# --- The end -----------------------------------------------------------------------------------------

begin "wallets are emptied by admins alone, where that is allowed"
call ann POST $api/reset '{}'
refused 403 FORBIDDEN
call admin POST $api/reset "{\"user_id\":\"$run_id-bob\"}"
if [[ $status == 403 ]]; then
    refused 403 FORBIDDEN
    holds bob 70 '{}'
    passed "ALLOW_WALLET_RESET is not set here: 403"
else
    expect 200
    holds bob 0 '{}'
    passed
fi

begin "who is suspended spends nothing"
call admin GET '/v1/accounts?limit=1000'
expect 200
account=$(field '.data[] | select(.user_id == "'"$run_id-ann"'") | .id')
call admin PATCH "/v1/accounts/$account" '{"suspended":true}'
expect 200
call ann POST $api/tokens/consume "$(consumption gemini-2.0-flash 1 0)"
refused 403 FORBIDDEN
call ann GET $api/balance
expect 200
passed 403

echo "all as the contract says"
