"""Chat templates render as their authors meant, and can neither break out nor run away."""

import datetime
import sys
import threading
import time

import pytest

from prm_jax.errors import UserError
from prm_jax.models import render_chat

MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2 + 3?"}]
CHATML = """
{%- for message in messages %}
    {{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""


class TestRendering:
    def test_by_hand(self):
        said = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n2 + 3?<|im_end|>\n"
        assert render_chat(CHATML, MESSAGES) == said + "<|im_start|>assistant\n"
        assert render_chat(CHATML, MESSAGES, add_generation_prompt=False) == said

    @pytest.mark.parametrize(
        ("template", "text"),
        [
            ("{{ bos_token }}{{ messages[0].content }}", "<s>Be brief."),
            ("{% for m in messages %}\n  {% if true %}\nx\n  {% endif %}\n{% endfor %}\n", "x\nx\n"),  # trim, lstrip
            ("{{ tools is none }}{{ undefined_name is defined }}{{ also_undefined }}", "TrueFalse"),
            ("{{ {'b': '<é>', 'a': [1, none]} | tojson }}", '{"b": "<é>", "a": [1, null]}'),
            ("{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}{{ m.role }}{% endfor %}", "user"),
            ("{% generation %}{{ messages[1].content }}{% endgeneration %}!", "2 + 3?!"),
            ("{% set n = namespace(n=0) %}{% for m in messages %}{% set n.n = n.n + 1 %}{% endfor %}{{ n.n }}", "2"),
            ("{% macro f(x) %}[{{ x }}]{% endmacro %}{{ f(10000000) }}", "[10000000]"),
            ("{{ 'a' ~ 1 ~ none }}{{ 'x' * 3 }}", "a1Nonexxx"),
            ("{{ '%s-%d' % ('y', 2000000) }} {{ '{:.2f}'.format(2.5) }}", "y-2000000 2.50"),
            ("{{ messages | map(attribute='role') | join(', ') }}{{ ' a '.strip() }}", "system, usera"),
            ("{{ strftime_now('%d %b %Y') }}", "02 Jan 2030"),
            ("{{ enable_thinking }}", "False"),
        ],
    )  # fmt: skip
    def test_what_templates_use(self, template, text):
        rendered = render_chat(
            template,
            MESSAGES,
            special_tokens={"bos_token": "<s>"},
            variables={"enable_thinking": False},
            now=datetime.datetime(2030, 1, 2),
        )
        assert rendered == text

    def test_messages_are_copied(self):
        with pytest.raises(UserError, match="SecurityError"):
            render_chat("{{ messages[0].update({'content': 'x'}) }}", MESSAGES)
        assert MESSAGES[0]["content"] == "Be brief."

    def test_the_trace_function_is_put_back(self):
        before = sys.gettrace()
        render_chat(CHATML, MESSAGES)
        assert sys.gettrace() is before

    def test_in_a_thread(self):
        texts = []
        thread = threading.Thread(target=lambda: texts.append(render_chat(CHATML, MESSAGES)))
        thread.start()
        thread.join()
        assert texts == [render_chat(CHATML, MESSAGES)]


class TestRefusals:
    @pytest.mark.parametrize(
        ("messages", "problem"),
        [
            ("hello", "must be a list"),
            ({"role": "user", "content": "x"}, "must be a list"),
            (["hello"], r"messages\[0\]: expected a mapping with a role"),
            ([{"content": "x"}], r"messages\[0\]: expected a mapping with a role"),
            ([*MESSAGES, {"role": "user", "content": None}], r"messages\[2\] \(user\): content must be text"),
        ],
    )
    def test_malformed_messages(self, messages, problem):
        with pytest.raises(UserError, match=problem):
            render_chat(CHATML, messages)

    def test_the_template_s_own_refusal(self):
        with pytest.raises(UserError, match="refuses this conversation: roles must alternate"):
            render_chat("{{ raise_exception('roles must alternate') }}", MESSAGES)

    @pytest.mark.parametrize(
        "template", ["{% for %}", "{{ 1 +", "{% unknown %}", "{{" + "(" * 3000 + ")" * 3000 + "}}"]
    )
    def test_no_template(self, template):
        with pytest.raises(UserError, match="does not compile"):
            render_chat(template, MESSAGES)

    def test_missing_variable(self):
        with pytest.raises(UserError, match="'system' is undefined"):
            render_chat("{{ system.content }}", MESSAGES)

    @pytest.mark.parametrize(
        "template",
        [
            "{{ ''.__class__.__mro__[1].__subclasses__() }}",
            "{{ cycler.__init__.__globals__.os.system('id') }}",
            "{{ messages.__class__ }}",
            "{{ self.__init__.__globals__ }}",
            "{{ raise_exception.__globals__ }}",
            "{{ strftime_now.__self__.__class__ }}",
            "{{ (lipsum | string).__class__ }}",
            "{{ messages.append({}) }}",
            "{% include '/etc/passwd' %}",
            "{% import 'os' as os %}",
            "{{ '' | attr('__class__') }}",
            "{{ '{0.__class__}'.format('') }}",
        ],
    )
    def test_nothing_is_reached_from_within(self, template):
        # The sandbox makes private attributes undefined: nothing when written, an error when used.
        try:
            assert render_chat(template, MESSAGES) == ""
        except UserError:
            pass


class TestCaps:
    @pytest.mark.parametrize(
        "loop",
        [
            "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}",
            "{% set r = range(100000) %}{% for a in r %}{% for b in r %}{% endfor %}{% endfor %}",
            "{{ range(100000) | map('string') | map('center', 10000) | list | length }}" * 50,
        ],
    )  # fmt: skip
    def test_time(self, loop):
        start = time.monotonic()
        with pytest.raises(UserError, match="ran for more than 0.3 seconds"):
            render_chat(loop, MESSAGES, max_seconds=0.3)
        assert time.monotonic() - start < 10

    @pytest.mark.parametrize(
        "template",
        [
            "{% for i in range(100000) %}{{ 'a' * 100000 }}{% endfor %}",
            "{{ 'a' * 10**9 }}",
            "{{ 10**5 * 'ab' * 1000 }}",
            "{{ [0] * 100000000 }}",
            "{{ 10 ** 10 ** 10 }}",
            "{% set ns = namespace(x='aa') %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
            "{% set ns = namespace(x='aa') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
            "{% set ns = namespace(x=7) %}{% for i in range(60) %}{% set ns.x = ns.x * ns.x %}{% endfor %}",
            "{{ 'a'.ljust(10**9) }}",
            "{{ 'a' | center(1000000000) }}",
            "{{ 'a\\nb' | indent(1000000000) }}",
            "{{ '%1000000000d' % 1 }}",
            "{{ '%*d' % (1000000000, 1) }}",
            "{{ '%1000000000d' | format(1) }}",
            "{{ '{:1000000000}'.format(1) }}",
            "{{ '{:{}}'.format(1, 1000000000) }}",
            "{{ ('x' * 100000) | replace('x', 'y' * 100000) }}",
            "{{ ('x' * 100000).replace('x', 'y' * 100000) }}",
            "{{ range(100000) | join('x' * 100000) }}",
            "{{ ('x' * 100000).join(messages | map(attribute='role') | list * 1000) }}",
            "{{ 'aaa'.translate({97: 'x' * 100000}) }}",
            "{{ (5).to_bytes(1000000000, 'big') }}",
            "{{ range(10**9) | list }}",
            "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}",
            "{{ messages | tojson(indent=100000000) }}",
        ],
    )
    def test_size(self, template):
        start = time.monotonic()
        with pytest.raises(UserError, match="the chat template failed"):
            render_chat(template, MESSAGES)
        assert time.monotonic() - start < 5

    def test_size_of_the_source(self):
        with pytest.raises(UserError, match="expected at most"):
            render_chat("x" * 1_000_001, MESSAGES)

    def test_a_long_conversation_is_fine(self):
        messages = [{"role": "user", "content": "word " * 10_000}] * 20
        assert len(render_chat(CHATML, messages)) > 1_000_000
