// What the SDKs that people use get through Cairn (argv[3]) and from another llama-server (argv[2]): one JSON line a case,
// {name, direct, through}, for test_clients.py to compare. Each value is what an application would look at.
import Anthropic from '@anthropic-ai/sdk';
import { createOpenAICompatible } from '@ai-sdk/openai-compatible';
import { generateText, jsonSchema, streamText, tool } from 'ai';
import OpenAI from 'openai';

const [directUrl, throughUrl] = process.argv.slice(2);
const model = 'test';
const fixed = { temperature: 0, seed: 1 };
const system = 'You are brief, and you know the way back by its stones. '.repeat(60);
const schema = { type: 'object', properties: { city: { type: 'string', enum: ['Oslo', 'Rome'] } }, required: ['city'],
  additionalProperties: false };
const look = { name: 'look', description: 'look at it', parameters: schema };

const openai = (url) => new OpenAI({ baseURL: `${url}/v1`, apiKey: 'none', maxRetries: 0 });
const anthropic = (url) => new Anthropic({ baseURL: url, apiKey: 'none', maxRetries: 0 });
const vercel = (url) => createOpenAICompatible({ name: 'test', baseURL: `${url}/v1`, includeUsage: true })(model);
const choice = ({ message, finish_reason }) =>
  ({ content: message.content, calls: message.tool_calls?.map((call) => call.function) ?? [], finish_reason });

// A case's own first words: what it shares with others must not be what it reuses.
const own = (name) => `Case ${name}. ${system}`;

async function chatTurns(url, name, stream) {
  const client = openai(url);
  const messages = [{ role: 'system', content: own(name) }];
  const turns = [];
  for (const content of ['Say something.', 'Say something else.']) {
    messages.push({ role: 'user', content });
    const body = { model, messages, max_tokens: 12, ...fixed };
    let text = '';
    let usage;
    if (stream) {
      const events = await client.chat.completions.create({ ...body, stream: true, stream_options: { include_usage: true } });
      for await (const event of events) {
        text += event.choices[0]?.delta?.content ?? '';
        usage = event.usage ?? usage;
      }
    } else {
      const answer = await client.chat.completions.create(body);
      text = answer.choices[0].message.content;
      usage = answer.usage;
    }
    turns.push({ text, prompt: usage.prompt_tokens, generated: usage.completion_tokens,
      cached: usage.prompt_tokens_details?.cached_tokens ?? 0 });
    messages.push({ role: 'assistant', content: text });
  }
  return turns;
}

async function messageTurns(url, name, stream) {
  const client = anthropic(url);
  const messages = [];
  const turns = [];
  for (const content of ['Say something.', 'Say something else.']) {
    messages.push({ role: 'user', content });
    const body = { model, system: own(name), messages, max_tokens: 12, temperature: 0 };
    const answer = stream ? await client.messages.stream(body).finalMessage() : await client.messages.create(body);
    const text = answer.content.map((block) => block.text ?? '').join('');
    const cached = answer.usage.cache_read_input_tokens ?? 0;
    turns.push({ text, prompt: answer.usage.input_tokens + cached, generated: answer.usage.output_tokens, cached,
      stop: answer.stop_reason });
    messages.push({ role: 'assistant', content: text || '-' });
  }
  return turns;
}

async function responseTurns(url, name, stream) {
  const client = openai(url);
  const input = [];
  const turns = [];
  for (const content of ['Say something.', 'Say something else.']) {
    input.push({ role: 'user', content });
    const body = { model, instructions: own(name), input, max_output_tokens: 12, temperature: 0 };
    let answer;
    if (stream) {
      for await (const event of await client.responses.create({ ...body, stream: true })) {
        if (event.type === 'response.completed') answer = event.response;
      }
    } else {
      answer = await client.responses.create(body);
    }
    const text = answer.output.flatMap((item) => item.content ?? []).map((part) => part.text ?? '').join('');
    turns.push({ text, prompt: answer.usage.input_tokens, generated: answer.usage.output_tokens,
      cached: answer.usage.input_tokens_details?.cached_tokens ?? 0 });
    input.push(...answer.output);
  }
  return turns;
}

async function vercelTurns(url, name, stream) {
  const messages = [];
  const turns = [];
  for (const content of ['Say something.', 'Say something else.']) {
    messages.push({ role: 'user', content });
    const body = { model: vercel(url), system: own(name), messages, maxOutputTokens: 12, maxRetries: 0, ...fixed };
    const answer = stream ? streamText(body) : await generateText(body);
    const text = await answer.text;
    const usage = await answer.usage;
    turns.push({ text, prompt: usage.inputTokens, generated: usage.outputTokens, finish: await answer.finishReason,
      cached: usage.cachedInputTokens ?? usage.inputTokenDetails?.cacheReadTokens ?? 0 });
    messages.push({ role: 'assistant', content: text || '-' });
  }
  return turns;
}

// Aborted after its first event, then a question that must be answered as if nothing had been.
async function aborted(url, begin, after) {
  const controller = new AbortController();
  let events = 0;
  let error = '';
  try {
    for await (const _ of await begin(url, controller.signal)) {
      events += 1;
      controller.abort();
    }
  } catch (caught) {
    error = caught.constructor.name;
  }
  return { some: events > 0, error, after: await after(url) };
}

async function refused(ask) {
  try {
    await ask();
    return 'answered';
  } catch (error) {
    return { name: error.constructor.name, status: error.status ?? error.statusCode, message: error.message };
  }
}

const short = (url) => openai(url).chat.completions
  .create({ model, messages: [{ role: 'user', content: 'Hello.' }], max_tokens: 4, ...fixed })
  .then((answer) => choice(answer.choices[0]));

const cases = {
  'openai chat turns': (url, name) => chatTurns(url, name, false),
  'openai chat turns streamed': (url, name) => chatTurns(url, name, true),
  'openai responses turns': (url, name) => responseTurns(url, name, false),
  'openai responses turns streamed': (url, name) => responseTurns(url, name, true),
  'anthropic messages turns': (url, name) => messageTurns(url, name, false),
  'anthropic messages turns streamed': (url, name) => messageTurns(url, name, true),
  'vercel chat turns': (url, name) => vercelTurns(url, name, false),
  'vercel chat turns streamed': (url, name) => vercelTurns(url, name, true),
  'openai tool': async (url) => choice((await openai(url).chat.completions.create({ model, max_tokens: 200, ...fixed,
    tools: [{ type: 'function', function: look }], messages: [{ role: 'user', content: 'Look.' },
      { role: 'assistant', content: '', tool_calls: [{ id: 'a1', type: 'function', function: { name: 'look', arguments: '{"city":"Oslo"}' } }] },
      { role: 'tool', tool_call_id: 'a1', content: 'It rains.' }] })).choices[0]),
  'openai schema': async (url) => JSON.parse((await openai(url).chat.completions.create({ model, max_tokens: 200, ...fixed,
    messages: [{ role: 'user', content: 'Where?' }],
    response_format: { type: 'json_schema', json_schema: { name: 'place', strict: true, schema } } })).choices[0].message.content),
  'openai completion': async (url) => (await openai(url).completions.create({ model, prompt: 'The way back', max_tokens: 8,
    ...fixed })).choices[0].text,
  'openai models': async (url) => (await openai(url).models.list()).data.map(({ id, object }) => ({ id, object })),
  'anthropic tool': async (url) => (await anthropic(url).messages.create({ model, max_tokens: 200, temperature: 0,
    messages: [{ role: 'user', content: 'Look.' },
      { role: 'assistant', content: [{ type: 'tool_use', id: 'a1', name: 'look', input: { city: 'Oslo' } }] },
      { role: 'user', content: [{ type: 'tool_result', tool_use_id: 'a1', content: 'It rains.' }] }],
    tools: [{ name: look.name, description: look.description, input_schema: schema }] })).content
    .map(({ type, text, name, input }) => ({ type, text, name, input })),
  'anthropic count': (url) => anthropic(url).messages.countTokens({ model, messages: [{ role: 'user', content: 'Hello.' }] })
    .then((count) => count.input_tokens),
  'vercel tool': (url) => generateText({ model: vercel(url), prompt: 'Look.', maxOutputTokens: 200, maxRetries: 0, ...fixed,
    tools: { look: tool({ description: look.description, inputSchema: jsonSchema(schema) }) } })
    .then(({ text, toolCalls }) => ({ text, calls: toolCalls.map(({ toolName, input }) => ({ toolName, input })) })),
  'openai abort': (url) => aborted(url, (to, signal) => openai(to).chat.completions.create(
    { model, messages: [{ role: 'user', content: own('abort') }], max_tokens: 2000, stream: true, ...fixed }, { signal }), short),
  'anthropic abort': (url) => aborted(url, (to, signal) => anthropic(to).messages.create(
    { model, messages: [{ role: 'user', content: own('abort') }], max_tokens: 2000, stream: true }, { signal }), short),
  'openai error': (url) => refused(() => openai(url).chat.completions.create({ model, messages: 'nonsense' })),
  'anthropic error': (url) => refused(() => anthropic(url).messages.create({ model, messages: [], max_tokens: 'many' })),
};

for (const [name, ask] of Object.entries(cases)) {
  const row = { name };
  for (const [side, url] of [['direct', directUrl], ['through', throughUrl]]) {
    try {
      row[side] = await ask(url, name);
    } catch (error) {
      row[side] = { unexpected: String(error.stack ?? error) };
    }
  }
  console.log(JSON.stringify(row));
}
