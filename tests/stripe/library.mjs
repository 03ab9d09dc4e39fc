// Stripe's official library, from where scripts/test puts it.

import { createRequire } from "node:module";
import { join } from "node:path";
import { createInterface } from "node:readline";

const tools = process.env.TEST_STRIPE_TOOLS;
if (!tools) {
  console.error("TEST_STRIPE_TOOLS names no directory: run this beside `scripts/test --services`");
  process.exit(2);
}

let found;
try {
  found = createRequire(join(tools, "package.json"))("stripe");
} catch (error) {
  console.error(`Stripe's library is not in ${tools}, where scripts/test installs it: ${error.message}`);
  process.exit(2);
}

export const Stripe = found.Stripe ?? found;

/** Answers each line of standard input, JSON, with the line that `answer` makes of it. */
export async function answerLines(answer) {
  for await (const line of createInterface({ input: process.stdin, crlfDelay: Infinity })) {
    if (line.trim() !== "") console.log(await answer(JSON.parse(line)));
  }
}
