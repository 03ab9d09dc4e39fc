// Signs webhook bodies as Stripe's official library does.
//
// Lines in:  {"payload": "…", "secret": "whsec_…", "timestamp": 1700000000}   (now, where it is left out)
// Lines out: the value of the header Stripe-Signature

import { Stripe, answerLines } from "./library.mjs";

const { webhooks } = new Stripe("sk_test_unused");

await answerLines(({ payload, secret, timestamp }) =>
  webhooks.generateTestHeaderString({ payload, secret, ...(timestamp === undefined ? {} : { timestamp }) }),
);
