import { FC } from 'react';

type Props = { items: string[] };

export const View: FC<Props> = ({ items }) => {
  const rows = items.map((item) => <Row key={item} />);
  return <List>{rows}</List>;
};

export function Row(props: { key: string }) {
  return <li>{props.key}</li>;
}
