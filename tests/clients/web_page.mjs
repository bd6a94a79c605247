// The backend's web page in headless Chromium, through Cairn: two turns as a person types them, and a screenshot.
// argv: the page's URL, the browser's program, the file for the screenshot. Prints {answers: [text, text]}.
import puppeteer from 'puppeteer-core';

const [url, executablePath, screenshot] = process.argv.slice(2);
const browser = await puppeteer.launch({ executablePath, headless: true, args: ['--no-sandbox', '--disable-gpu'] });
try {
  const page = await browser.newPage();
  await page.setViewport({ width: 1100, height: 800 });
  const failures = [];
  page.on('pageerror', (error) => failures.push(String(error)));
  page.on('requestfailed', (request) => failures.push(`${request.url()}: ${request.failure().errorText}`));
  await page.goto(url, { waitUntil: 'networkidle0' });
  // Debian's page has settings for these: it asks port 8080, for 1,024 tokens and no reuse unless told otherwise.
  await page.evaluate(() => {
    if (!document.gMe) return;
    document.gMe.baseURL = location.origin;
    Object.assign(document.gMe.apiRequestOptions, { max_tokens: 40, n_predict: 40, cache_prompt: true });
  });
  // llama.cpp's page has one text area; the older one that Debian keeps names the right one of its two.
  const box = (await page.$('#user-in')) ?? await page.waitForSelector('textarea');
  const answers = [];
  for (const words of ['Which way leads back?', 'And then?']) {
    await box.click();
    await box.type(words);
    const answered = page.waitForResponse((response) => response.request().method() === 'POST' && /completion/.test(response.url()));
    await page.keyboard.press('Enter');
    const response = await answered;
    await response.buffer().catch(() => null);  // a stream's end
    await page.waitForFunction((each) => !each.disabled, {}, box);
    await page.waitForNetworkIdle();
    answers.push({ status: response.status(), text: await page.evaluate(() => document.body.innerText) });
  }
  await page.screenshot({ path: screenshot });
  console.log(JSON.stringify({ answers, failures }));
} finally {
  await browser.close();
}
