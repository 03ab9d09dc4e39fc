-- The twin of gcra.rs: the same steps, in the same order, over what Redis keeps. KEYS are buckets; for the i-th,
-- ARGV[2i-1] is the allowance per minute and ARGV[2i] what to do: 1 takes, 0 looks, -1 gives back. The answer
-- holds two integers for each: whether one was there (1 or 0), and the ticks that are owed afterwards.
--
-- A double holds every integer up to 2^53. Microseconds since 1970 fit (until 2255), but no part of one, hence
-- ticks. What is owed reaches 2^58 at the highest rates: it stays exact while no time passes, because an
-- emission interval is a multiple of 2^8, and is then off by less than a millionth of an interval.
local MINUTE = 60000000

-- The server's clock, so that all replicas of the platform share one.
local clock = redis.call('TIME')
local now = clock[1] * 1000000 + clock[2]
local answers = {}

for i, key in ipairs(KEYS) do
  local per_minute = tonumber(ARGV[2 * i - 1])
  local change = tonumber(ARGV[2 * i])
  local whole = MINUTE * per_minute

  local owed, ahead = 0, false
  -- pcall: something else under this name must not fail the strangers in this batch. The SET below replaces it.
  local kept = redis.pcall('GET', key)
  local at, was_owed, was_per_minute
  if type(kept) == 'string' then
    at, was_owed, was_per_minute = string.match(kept, '^(%d+) (%d+) (%d+)$')
  end
  if at then
    at, was_owed, was_per_minute = tonumber(at), tonumber(was_owed), tonumber(was_per_minute)
    -- A clock set back: see gcra.rs. A server's clock does that, when it is corrected or another takes over.
    ahead = at > now
    owed = math.max(0, was_owed - math.max(0, now - at) * was_per_minute)
    if was_per_minute ~= per_minute then
      owed = math.floor(owed * per_minute / was_per_minute)
    end
  end

  local allowed = owed + MINUTE <= whole
  local after = owed
  if change == -1 then
    after = math.max(0, owed - MINUTE)
    allowed = after + MINUTE <= whole
  elseif change == 1 and allowed then
    after = owed + MINUTE
  end

  -- A refusal writes nothing, so a flood of them costs no replication.
  if after ~= owed or ahead then
    if after == 0 then
      redis.call('DEL', key)
    else
      local full_in = math.ceil(after / per_minute / 1000)
      redis.call('SET', key, string.format('%.0f %.0f %.0f', now, after, per_minute), 'PX', full_in)
    end
  end

  answers[2 * i - 1] = allowed and 1 or 0
  answers[2 * i] = after
end

return answers
