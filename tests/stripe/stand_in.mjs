// Drives scripts/stripe-stand-in by Stripe's official library: it has to be enough of a Stripe for that,
// and its webhooks have to pass that library's check.

import assert from "node:assert/strict";
import { spawn, spawnSync } from "node:child_process";
import { createServer } from "node:http";
import { once } from "node:events";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";

import { Stripe } from "./library.mjs";

const secret = "whsec_of_this_test";
const delivered = [];
let refuses = 0;
const endpoint = createServer((request, response) => {
  let body = "";
  request.setEncoding("utf8").on("data", (chunk) => (body += chunk)).on("end", () => {
    delivered.push(stripe.webhooks.constructEvent(body, request.headers["stripe-signature"], secret));
    response.writeHead(refuses-- > 0 ? 500 : 200).end('{"received":true}');
  });
});
await once(endpoint.listen(0, "127.0.0.1"), "listening");

const program = fileURLToPath(new URL("../../scripts/stripe-stand-in", import.meta.url));
const webhook = `http://127.0.0.1:${endpoint.address().port}/webhooks/stripe`;
const process_ = spawn(program, ["--webhook-url", webhook, "--webhook-secret", secret], {
  stdio: ["ignore", "pipe", "ignore"],
});
process.on("exit", () => process_.kill());
const [base] = await once(createInterface({ input: process_.stdout }), "line");
assert.match(base, /^http:\/\/127\.0\.0\.1:\d+$/);

const { hostname: host, port } = new URL(base);
const options = { host, port, protocol: "http", maxNetworkRetries: 0, telemetry: false };
const stripe = new Stripe("sk_test_stand_in", options);

async function control(method, path, body) {
  const answer = await fetch(`${base}/_/${path}`, { method, body: body && JSON.stringify(body) });
  const json = await answer.json();
  assert.equal(answer.status, 200, `${method} /_/${path}: ${JSON.stringify(json)}`);
  return json;
}

/** What the library sends has to pass the check that ours has to. */
function checkRequests(requests) {
  const checker = fileURLToPath(new URL("check_requests.py", import.meta.url));
  const { status, stdout, stderr } = spawnSync(checker, { input: JSON.stringify(requests), encoding: "utf8" });
  assert.equal(status, 0, stdout + stderr);
}

/** The types of the events that came since it was last asked. */
const types = () => delivered.splice(0).map((event) => event.type);

const refused = (promise, expected) => assert.rejects(promise, expected);

const subscription = (customer, more = {}) => ({
  mode: "subscription",
  customer,
  client_reference_id: "purchase_1",
  success_url: "https://shop.example/thanks",
  line_items: [
    {
      quantity: 1,
      price_data: {
        currency: "usd",
        unit_amount: 1000,
        recurring: { interval: "month" },
        product_data: { name: "Pro" },
      },
    },
  ],
  subscription_data: { metadata: { purchase: "purchase_1" } },
  ...more,
});

const credits = (customer, cents, more = {}) => ({
  mode: "payment",
  customer,
  success_url: "https://shop.example/thanks",
  line_items: [{ quantity: 1, price_data: { currency: "usd", unit_amount: cents, product_data: { name: "Credits" } } }],
  ...more,
});

const tests = {
  async "customers and idempotency"() {
    const once_ = { idempotencyKey: "customer/1" };
    const customer = await stripe.customers.create({ email: "a@shop.example", metadata: { account: "a" } }, once_);
    assert.equal(customer.metadata.account, "a");
    assert.equal((await stripe.customers.retrieve(customer.id)).email, "a@shop.example");
    const again = await stripe.customers.create({ email: "a@shop.example", metadata: { account: "a" } }, once_);
    assert.equal(again.id, customer.id);
    assert.equal(again.lastResponse.headers["idempotent-replayed"], "true");
    await refused(stripe.customers.create({ email: "b@shop.example" }, once_), { type: "StripeIdempotencyError" });
    await refused(stripe.customers.retrieve("cus_none"), { code: "resource_missing", statusCode: 404, param: "id" });
    const nobody = new Stripe("pk_test_wrong", options);
    await refused(nobody.customers.create({}), { type: "StripeAuthenticationError", statusCode: 401 });
  },

  async "what Stripe would refuse"() {
    const { id } = await stripe.customers.create({});
    const sell = (parameters) => stripe.checkout.sessions.create(parameters);
    await refused(sell(subscription("cus_none")), { code: "resource_missing", param: "customer", statusCode: 400 });
    await refused(sell(credits(id, 49)), { code: "amount_too_small" });
    await refused(sell(credits(id, 100_000_000)), { code: "amount_too_large" });
    await refused(sell(credits(id, 500, { success_url: undefined })), { param: "success_url" });
    await refused(sell(credits(id, 500, { success_url: "thanks" })), { code: "url_invalid" });
    await refused(sell({ ...credits(id, 500), mode: "subscription" }), { param: "line_items" });
    await refused(sell({ ...subscription(id), mode: "payment" }), { param: "subscription_data" });
    await refused(sell(credits(id, 500, { line_items: [{ price: "price_none", quantity: 1 }] })), {
      param: "line_items[0][price]",
    });
    await refused(stripe.billingPortal.sessions.create({ customer: "cus_none" }), { param: "customer" });
    await refused(stripe.products.create({ name: "Not here" }), { statusCode: 404 });
  },

  async "a subscription, from checkout to its end"() {
    const customer = await stripe.customers.create({ email: "a@shop.example" });
    const session = await stripe.checkout.sessions.create(subscription(customer.id), { idempotencyKey: "purchase_1" });
    assert.deepEqual([session.status, session.payment_status, session.amount_total], ["open", "unpaid", 1000]);
    assert.ok(session.url.startsWith(`${base}/c/pay/`));
    assert.equal(session.line_items, undefined);
    const whole = await stripe.checkout.sessions.retrieve(session.id, { expand: ["line_items"] });
    assert.equal(whole.line_items.data[0].price.recurring.interval, "month");

    await control("POST", `sessions/${session.id}/pay`);
    const [completed, created, updated, invoice] = delivered.map((event) => event.data.object);
    assert.deepEqual(types(), [
      "checkout.session.completed",
      "customer.subscription.created",
      "customer.subscription.updated",
      "invoice.paid",
    ]);
    assert.deepEqual([completed.payment_status, completed.client_reference_id], ["paid", "purchase_1"]);
    assert.deepEqual([created.status, updated.status, updated.metadata.purchase], ["incomplete", "active", "purchase_1"]);
    assert.deepEqual([completed.subscription, completed.customer], [updated.id, customer.id]);
    assert.equal(invoice.parent.subscription_details.subscription, updated.id);
    const paid = await fetch(`${base}/_/sessions/${session.id}/pay`, { method: "POST" });
    assert.equal(paid.status, 400);

    const portal = await stripe.billingPortal.sessions.create({
      customer: customer.id,
      return_url: "https://shop.example/",
    });
    assert.ok((await (await fetch(portal.url)).text()).includes(updated.id));

    await control("POST", `subscriptions/${updated.id}/renew`);
    const end = (event) => event.data.object.items.data[0].current_period_end;
    assert.ok(end(delivered[0]) > updated.items.data[0].current_period_end + 27 * 86_400);
    assert.deepEqual(types(), ["customer.subscription.updated", "invoice.paid"]);
    await control("POST", `subscriptions/${updated.id}/fail_payment`);
    assert.deepEqual(types(), ["invoice.payment_failed", "customer.subscription.updated"]);
    await control("POST", `subscriptions/${updated.id}/pause`);
    await control("POST", `subscriptions/${updated.id}/resume`);
    assert.deepEqual(types(), ["customer.subscription.paused", "customer.subscription.resumed"]);
    await control("POST", `subscriptions/${updated.id}/cancel?at_period_end=true`);
    await control("POST", `subscriptions/${updated.id}/cancel`);
    assert.deepEqual(types(), ["customer.subscription.updated", "customer.subscription.deleted"]);

    await control("POST", "refund", { invoice: invoice.id });
    const refunded = delivered[0].data.object;
    assert.equal(refunded.amount_refunded, 1000);
    assert.deepEqual(types(), ["charge.refunded"]);

    // A charge does not say which invoice it paid; this is how that is asked.
    const payment = { type: "payment_intent", payment_intent: refunded.payment_intent };
    const { data: payments, has_more } = await stripe.invoicePayments.list({ payment });
    assert.deepEqual([payments.length, has_more], [1, false]);
    assert.deepEqual([payments[0].invoice, payments[0].status, payments[0].payment], [invoice.id, "paid", payment]);
    const asked = (await control("GET", "requests")).at(-1);
    checkRequests([{ method: asked.method, path: asked.path, headers: asked.headers, body: asked.body }]);
    const none = await stripe.invoicePayments.list({ payment: { ...payment, payment_intent: "pi_none" } });
    assert.deepEqual(none.data, []);
    assert.equal((await stripe.invoicePayments.list({ limit: 1 })).has_more, true);
    await refused(stripe.invoicePayments.list({ payments: payment }), { code: "parameter_unknown" });
    await refused(stripe.invoicePayments.list({ payment: { payment_intent: "pi_none" } }), { param: "payment[type]" });
  },

  async "credits, refunds and disputes"() {
    const { id } = await stripe.customers.create({});
    const session = await stripe.checkout.sessions.create(credits(id, 1000));
    const { object } = await control("POST", `sessions/${session.id}/pay`);
    const payment_intent = object.payment_intent;
    assert.deepEqual(types(), ["checkout.session.completed"]);
    await control("POST", "refund", { payment_intent, amount: 300 });
    await control("POST", "refund", { payment_intent, amount: 200 });
    assert.deepEqual(delivered.map((event) => event.data.object.amount_refunded), [300, 500]);
    assert.deepEqual(types(), ["charge.refunded", "charge.refunded"]);
    await control("POST", "dispute", { payment_intent });
    const { object: lost, events } = await control("POST", "dispute", { close: "lost" });
    assert.deepEqual([lost.status, lost.amount, lost.payment_intent], ["lost", 500, payment_intent]);
    assert.deepEqual(types(), ["charge.dispute.created", "charge.dispute.closed"]);

    refuses = 1;
    const failed = await control("POST", `redeliver/${events[0].id}`);
    assert.equal(failed.events[0].status, 500);
    await control("POST", `redeliver/${events[0].id}`);
    assert.deepEqual(delivered.map((event) => event.id), [events[0].id, events[0].id]);
    types();
    await control("POST", "redeliver/all");
    assert.equal(types().length, (await control("GET", "events")).length);
  },

  async "lists, page by page"() {
    const { id } = await stripe.customers.create({});
    const count = 103;
    const sessions = [];
    for (let n = 0; n < count; n++) sessions.push((await stripe.checkout.sessions.create(credits(id, 1000))).id);
    const { object } = await control("POST", `sessions/${sessions[0]}/pay`);
    const { object: subscribed } = await control(
      "POST",
      `sessions/${(await stripe.checkout.sessions.create(subscription(id))).id}/pay`,
    );
    await control("POST", "refund", { payment_intent: object.payment_intent, amount: 300 });
    await control("POST", "dispute", { payment_intent: object.payment_intent });
    types();

    const page = await stripe.checkout.sessions.list({ customer: id, limit: 100 });
    assert.deepEqual([page.data.length, page.has_more, page.url], [100, true, "/v1/checkout/sessions"]);
    assert.equal((await stripe.checkout.sessions.list({ customer: id })).data.length, 10);
    const all = await stripe.checkout.sessions.list({ customer: id, limit: 100 }).autoPagingToArray({ limit: 1000 });
    assert.deepEqual(all.slice(1).map((session) => session.id), sessions.toReversed());
    const complete = await stripe.checkout.sessions.list({ customer: id, status: "complete" });
    assert.deepEqual(complete.data.map((session) => session.id), [subscribed.id, sessions[0]]);
    const later = { created: { gte: Math.floor(Date.now() / 1000) + 60 } };
    assert.deepEqual((await stripe.checkout.sessions.list({ customer: id, ...later })).data, []);

    const { payment_intent } = object;
    const [charge] = (await stripe.charges.list({ payment_intent })).data;
    assert.equal((await stripe.charges.retrieve(charge.id)).amount_refunded, 300);
    const [refund] = (await stripe.refunds.list({ payment_intent, expand: ["data.charge"] })).data;
    assert.deepEqual([refund.amount, refund.charge.id, refund.charge.amount_refunded], [300, charge.id, 300]);
    assert.equal((await stripe.refunds.list({ payment_intent })).data[0].charge, charge.id);
    const [dispute] = (await stripe.disputes.list({ payment_intent })).data;
    assert.equal((await stripe.disputes.retrieve(dispute.id)).status, "needs_response");
    const [invoice] = (await stripe.invoices.list({ customer: id, status: "paid" })).data;
    assert.equal((await stripe.invoices.retrieve(invoice.id)).amount_paid, 1000);
    const live = () => stripe.subscriptions.list({ customer: id });
    assert.deepEqual((await live()).data.map((one) => [one.id, one.status]), [[subscribed.subscription, "active"]]);
    await control("POST", `subscriptions/${subscribed.subscription}/cancel`);
    assert.deepEqual((await live()).data, []);
    assert.equal((await stripe.subscriptions.list({ customer: id, status: "all" })).data.length, 1);
    assert.equal((await stripe.subscriptions.retrieve(subscribed.subscription)).status, "canceled");
    const told = await stripe.events.list({ types: ["charge.refunded", "charge.dispute.created"], ...{ limit: 2 } });
    assert.deepEqual(told.data.map((event) => event.data.object.id), [dispute.id, charge.id]);

    await refused(stripe.checkout.sessions.list({ limit: 101 }), { param: "limit" });
    await refused(stripe.checkout.sessions.list({ starting_after: "cs_none" }), { param: "starting_after" });
    await refused(stripe.invoices.list({ state: "paid" }), { code: "parameter_unknown" });
    await refused(stripe.charges.retrieve("ch_none"), { statusCode: 404, code: "resource_missing" });
    const asked = (await control("GET", "requests")).filter(({ method, status }) => method === "GET" && status === 200);
    checkRequests(asked.map(({ method, path, headers, body }) => ({ method, path, headers, body })));

    await control("POST", "age", { seconds: 3600 });
    const old = await stripe.events.list({ created: { gte: Math.floor(Date.now() / 1000) - 1800 } });
    assert.deepEqual(old.data, []);
    types();
  },

  async "payments that take days, and sessions that expire"() {
    const { id } = await stripe.customers.create({});
    const start = async () => (await stripe.checkout.sessions.create(credits(id, 1000))).id;
    const [good, bad, late] = [await start(), await start(), await start()];
    await control("POST", `sessions/${good}/pay?async=true`);
    assert.equal(delivered[0].data.object.payment_status, "unpaid");
    await control("POST", `sessions/${good}/pay?async=true`);
    assert.equal(delivered[1].data.object.payment_status, "paid");
    assert.deepEqual(types(), ["checkout.session.completed", "checkout.session.async_payment_succeeded"]);
    await control("POST", `sessions/${bad}/pay?async=fail`);
    await control("POST", `sessions/${bad}/pay?async=fail`);
    assert.deepEqual(types(), ["checkout.session.completed", "checkout.session.async_payment_failed"]);
    await control("POST", `sessions/${late}/expire`);
    assert.deepEqual(types(), ["checkout.session.expired"]);
    assert.equal((await stripe.checkout.sessions.retrieve(late)).status, "expired");
  },

  async "what goes wrong on the way"() {
    const again = { idempotencyKey: "customer/faults" };
    await control("POST", "fail", { status: 500, times: 2 });
    for (const _ of [1, 2]) await refused(stripe.customers.create({}, again), { statusCode: 500 });
    await control("POST", "fail", { status: 503, when: "after", path: "/v1/customers" });
    await refused(stripe.customers.create({}, again), { statusCode: 503 });
    const replayed = await stripe.customers.create({}, again);
    assert.equal(replayed.lastResponse.headers["idempotent-replayed"], "true");

    await control("POST", "hang", { seconds: 2, when: "before" });
    const slow = stripe.customers.create({}, { idempotencyKey: "customer/slow" });
    await new Promise((resolve) => setTimeout(resolve, 500));
    await refused(stripe.customers.create({}, { idempotencyKey: "customer/slow" }), { statusCode: 409 });
    await slow;
    const hasty = new Stripe("sk_test_stand_in", { ...options, timeout: 300 });
    await control("POST", "hang", { seconds: 1 });
    await refused(hasty.customers.create({}), { type: "StripeConnectionError" });
  },

  async "a page to pay at, and what was asked"() {
    await control("POST", "prices", { id: "price_known", unit_amount: 700, currency: "usd", interval: "year" });
    const line_items = [{ price: "price_known", quantity: 2 }];
    const session = await stripe.checkout.sessions.create(subscription(undefined, { line_items }));
    assert.equal(session.amount_total, 1400);
    assert.ok((await (await fetch(session.url)).text()).includes("1400"));
    const answer = await fetch(session.url, { method: "POST", redirect: "manual" });
    assert.deepEqual([answer.status, answer.headers.get("location")], [303, "https://shop.example/thanks"]);
    assert.equal(types().length, 4);
    const asked = (await control("GET", "requests")).at(-1);
    assert.deepEqual([asked.method, asked.path, asked.status], ["POST", "/v1/checkout/sessions", 200]);
    assert.equal(asked.form.line_items[0].price, "price_known");
    assert.ok(asked.body.includes("price_known") && asked.headers.authorization.startsWith("Bearer sk_"));
  },
};

for (const [name, test] of Object.entries(tests)) {
  try {
    await test();
  } catch (error) {
    console.error(`FAIL  ${name}\n`, error);
    process.exit(1);
  }
  console.log(`ok    ${name}`);
}
process.exit(0);
