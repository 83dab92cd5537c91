import { expect, it } from "vitest";
import { Latest } from "../src/core/latest";

const settled = () => new Promise<void>((resolve) => setTimeout(resolve));

function setUp() {
  const loads: { value: number; finish: (error?: Error) => void }[] = [];
  const latest = new Latest<number>(
    (value) =>
      new Promise((resolve, reject) => {
        loads.push({ value, finish: (error) => (error ? reject(error) : resolve()) });
      }),
  );
  return { latest, loads, values: () => loads.map(({ value }) => value) };
}

it("loads the first at once and, after it, only the newest", async () => {
  const { latest, loads, values } = setUp();
  [1, 2, 3].forEach((value) => latest.push(value));
  expect(values()).toEqual([1]);
  loads[0]?.finish();
  await settled();
  expect(values()).toEqual([1, 3]);
});

it("goes on after a failure", async () => {
  const { latest, loads, values } = setUp();
  latest.push(1);
  latest.push(2);
  loads[0]?.finish(new Error("gone"));
  await settled();
  expect(values()).toEqual([1, 2]);
});

it("forgets what waits when cleared", async () => {
  const { latest, loads, values } = setUp();
  latest.push(1);
  latest.push(2);
  latest.clear();
  loads[0]?.finish();
  await settled();
  expect(values()).toEqual([1]);
});
